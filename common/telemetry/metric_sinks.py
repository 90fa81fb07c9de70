"""Where metrics go besides the run folder's JSON lines: TensorBoard and Prometheus.

Trackers are fed from the JSON lines themselves: `vcppo.common.trackers`.
Each library is imported when its sink is made: a service that does not want it does not pay for it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from vcppo.common.errors import MetricsError
from vcppo.common.telemetry.metric_names import STEP, Metric, series_of

if TYPE_CHECKING:
    from prometheus_client.core import Metric as Family
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

log = structlog.get_logger(__name__)

Scalars = Mapping[str, float | int]


class Sink(Protocol):
    """Takes the numbers of one line. ``values`` holds what is defined; ``undefined`` the names that are not, now."""

    def write(self, step: int, values: Scalars, undefined: Iterable[str], wall_time: float) -> None:
        """Take one step's numbers; `wall_time` in seconds since the epoch."""

    def close(self) -> None:
        """Flush and let go; nothing is written after it."""


class TensorBoardSink:
    """TensorBoard scalars in ``folder``, without torch.

    Its writer does not survive a full disk: the next write begins a file of its own, which TensorBoard reads as one
    with the others. Events of the last seconds before are missing in the curves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: EventFileWriter | None = self._opened()

    def write(self, step: int, values: Scalars, undefined: Iterable[str], wall_time: float) -> None:
        """One event with all scalars of the step; undefined ones leave a gap in their curve.

        Raises OSError when the disk refuses; the next call tries again.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        try:
            self._writer = self._writer or self._opened()
            self._writer.add_event(Event(step=step, wall_time=wall_time, summary=summary))
        except OSError:
            self._writer = None
            raise

    def close(self) -> None:
        """Flush what the writer still holds."""
        if self._writer is None:
            return
        try:
            self._writer.close()
        except OSError as error:
            log.warning("metrics_not_written", sink=type(self).__name__, error=str(error))

    def _opened(self) -> EventFileWriter:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._folder.mkdir(parents=True, exist_ok=True)
        return EventFileWriter(str(self._folder), flush_secs=5)


class Snapshot:
    """The newest value of every series, as Prometheus' client collects it. Counters add up what came ``since``."""

    def __init__(self, service: str, run_id: str) -> None:
        self._identity = (service, run_id)
        self._values: dict[tuple[str, str], tuple[Metric, float]] = {}
        self._lock = threading.Lock()

    def update(self, step: int, values: Scalars, undefined: Iterable[str]) -> None:
        """Take a step's numbers: gauges are replaced or, when undefined, dropped; counters add what came ``since``."""
        with self._lock:
            for name, value in {STEP.name: step, **values}.items():
                metric, family, label = series_of(name)
                before = self._values[family, label][1] if (family, label) in self._values else 0.0
                self._values[family, label] = (metric, float(value) + (before if metric.kind == "since" else 0.0))
            for name in undefined:
                metric, family, label = series_of(name)
                if metric.kind == "gauge":
                    self._values.pop((family, label), None)

    def collect(self) -> Iterable[Family]:
        """One family after another; called by the client in the thread of a scrape."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        with self._lock:
            values = dict(self._values)
        families: dict[str, Any] = {}
        for (family, label), (metric, value) in values.items():
            if family not in families:
                kind = GaugeMetricFamily if metric.kind == "gauge" else CounterMetricFamily
                labels = ["service", "run", *([metric.label] if metric.label else [])]
                families[family] = kind(family, metric.text, labels=labels)
            families[family].add_metric([*self._identity, *([label] if metric.label else [])], value)
        return families.values()


class PrometheusSink:
    """Serves the newest values, and figures of the process itself, at ``http://host:port/metrics``.

    Raises:
        MetricsError: the port can't be had.
    """

    def __init__(self, host: str, port: int, service: str, run_id: str) -> None:
        from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

        self._snapshot = Snapshot(service, run_id)
        registry = CollectorRegistry()  # not the default one: libraries of this process put theirs there
        registry.register(self._snapshot)
        ProcessCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise MetricsError(
                f"metrics.prometheus_port = {port}: can't be used on {host} ({error.strerror or error}): choose"
                " another, or 0 for none"
            ) from None
        self.port: int = self._server.server_port
        log.info("metrics_served", host=host, port=self.port)

    def write(self, step: int, values: Scalars, undefined: Iterable[str], wall_time: float) -> None:
        """Show these at the next scrape; Prometheus sets the time itself."""
        self._snapshot.update(step, values, undefined)

    def close(self) -> None:
        """Stop answering scrapes and free the port."""
        self._server.shutdown()
        self._server.server_close()

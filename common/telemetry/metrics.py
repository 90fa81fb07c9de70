"""Metrics of one service: JSON lines in the run folder; the same call feeds TensorBoard, Prometheus and the like.

writer = open_metrics(config, "learner", "steps_of_run")
writer.write(step, {"reward/mean": 0.5})     the names: `vcppo.common.telemetry.metric_names`
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from vcppo.common.errors import MetricsError
from vcppo.common.files.json_lines import parse_object
from vcppo.common.files.kept_lines import KeptLines
from vcppo.common.files.room import shortage_of
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metric_sinks import PrometheusSink, Sink, TensorBoardSink
from vcppo.common.trackers.position import Axis
from vcppo.common.trackers.wanted import open_trackers

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig

Value = float | int | str | None | Sequence[float | None]

log = structlog.get_logger(__name__)


class MetricsWriter:
    """Appends one line per step to ``<run>/metrics/<service>.jsonl``, at once: a crash tears one line at most.

    Lines that a full disk refuses wait in memory until there is room; the log says so.

    Args:
        folder: the run folder (not its metrics folder).
        service: ``learner``, ``generator-0``, …; names the file.
        run_id: goes into every line.
        sinks: get the numbers of each line too; closed with this.
    """

    def __init__(self, folder: Path, service: str, run_id: str, sinks: Sequence[Sink] = ()) -> None:
        self._identity = {"service": service, "run_id": run_id}
        self._path = RunFolder(folder).metrics_file(service)
        self._lines, self._is_short = KeptLines(self._path), False
        self._sinks = list(sinks)

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Append ``{"time", "service", "run_id", "step", …values}``.

        Args:
            step: x-axis of the charts; learner step or seconds, as the service defines it.
            values: by name. NaN and infinity become null, which sinks hear of as undefined. Lists (curves by position,
                say) and text (``stage``) are in the JSON line only.
        """
        now = time.time()
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        plain = {name: _plain(value) for name, value in values.items()}
        line = {"time": stamp, **self._identity, "step": step, **plain}
        self._judge(self._lines.write(json.dumps(line, allow_nan=False).encode() + b"\n"))
        scalars = {name: value for name, value in plain.items() if isinstance(value, float | int)}
        undefined = [name for name, value in plain.items() if value is None]
        for sink in self._sinks:
            try:
                sink.write(step, scalars, undefined, now)
            except OSError as error:
                if shortage_of(error) is None:
                    raise
                log.warning("metrics_not_written", sink=type(sink).__name__, step=step, error=str(error))

    def close(self) -> None:
        """Flush and close everything; idempotent."""
        self._lines.close()
        if self._lines.lost:
            log.error("metrics_lost", lines=self._lines.lost, file=str(self._path))
            self._lines.lost = 0
        while self._sinks:
            self._sinks.pop().close()

    def _judge(self, error: OSError | None) -> None:
        """Say when lines begin to wait for room, and when all are written. Raises `error` when it is no shortage."""
        if error is None:
            if self._is_short:
                log.info("room_again", what="metrics", lost=self._lines.lost)
            self._is_short = False
            return
        if (shortage := shortage_of(error, self._path.parent)) is None:
            raise error
        if not self._is_short:
            self._is_short = True
            log.warning("waiting_for_room", what="metrics", **shortage.as_fields())


def open_metrics(config: VcppoConfig, service: str, axis: Axis) -> MetricsWriter:
    """The writer of ``service`` with the sinks the config asks for.

    Args:
        axis: what ``step`` is to this service, for trackers.

    Raises:
        MetricsError: one of them can't be had; the text says which setting.
    """
    folder, run_id, wanted = RunFolder(config.run.path), config.run.name, config.metrics
    sinks: list[Sink] = []
    if wanted.prometheus_port:  # first: nothing is open yet if the port is taken
        sinks.append(PrometheusSink(wanted.prometheus_host, wanted.prometheus_port, service, run_id))
    if (trackers := open_trackers(config, service, axis)) is not None:
        sinks.append(trackers)
    if config.logging.tensorboard:
        sinks.append(TensorBoardSink(folder.tensorboard / service))
    return MetricsWriter(folder.path, service, run_id, sinks)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file, oldest first; a missing file is an empty list.

    A line torn by a crash is left out and reported by a ``metrics_line_torn`` warning.

    Raises:
        MetricsError: the file can't be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise MetricsError(f"{path}: can't be read: {error}") from None
    lines: list[dict[str, Any]] = []
    for number, raw in enumerate(text.split("\n"), start=1):
        if raw.strip():
            line = parse_object(raw)
            if line is None:
                log.warning("metrics_line_torn", path=str(path), line=number, text=raw[:80])
            else:
                lines.append(line)
    return lines


def _plain(value: Any) -> Any:
    """JSON's idea of a value; numpy scalars and arrays and 0-d tensors go by their ``item``/``tolist``."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, str | bool) or value is None:
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    if isinstance(value, int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None

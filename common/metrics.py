"""Metrics of one service: JSON lines in the run folder, scalars also as TensorBoard event files (without torch)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from common.errors import MetricsError
from common.run_folder import RunFolder

Value = float | int | str | None | Sequence[float | None]

log = structlog.get_logger(__name__)


class MetricsWriter:
    """Appends one line per step to ``<run>/metrics/<service>.jsonl``, flushed at once: a crash tears one line at most.

    Args:
        folder: the run folder (not its metrics folder).
        service: ``learner``, ``generator-0``, …; names the file and the TensorBoard folder.
        run_id: goes into every line.
        tensorboard: write event files to ``<run>/tensorboard/<service>`` too.
    """

    def __init__(self, folder: Path, service: str, run_id: str, tensorboard: bool) -> None:
        run_folder = RunFolder(folder)
        self._identity = {"service": service, "run_id": run_id}
        path = run_folder.metrics_file(service)
        path.parent.mkdir(parents=True, exist_ok=True)
        _close_torn_line(path)
        self._file = path.open("a", encoding="utf-8")
        self._events = _EventWriter(run_folder.tensorboard / service) if tensorboard else None

    def write(self, step: int, values: Mapping[str, Value]) -> None:
        """Append ``{"time", "service", "run_id", "step", …values}``.

        Args:
            step: x-axis of the charts; learner step or seconds, as the service defines it.
            values: by name. NaN and infinity become null. Lists (curves by position, say) and text
                (``stage``) are in the JSON line only; null is left out of TensorBoard.
        """
        now = time.time()
        stamp = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        plain = {name: _plain(value) for name, value in values.items()}
        line = {"time": stamp, **self._identity, "step": step, **plain}
        self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            scalars = {name: value for name, value in plain.items() if isinstance(value, float | int)}
            self._events.write(step, scalars, now)

    def close(self) -> None:
        """Flush and close both; idempotent."""
        self._file.close()
        if self._events is not None:
            self._events.close()
            self._events = None


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
            line = _parse(raw)
            if line is None:
                log.warning("metrics_line_torn", path=str(path), line=number, text=raw[:80])
            else:
                lines.append(line)
    return lines


def _parse(raw: str) -> dict[str, Any] | None:
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) else None


def _close_torn_line(path: Path) -> None:
    """End what a crashed predecessor left without a newline, so that our first line is not glued to it."""
    if path.exists() and path.stat().st_size:
        with path.open("rb+") as file:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")


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


class _EventWriter:
    """TensorBoard scalars. Imported late: only services that want it pay for protobuf."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventFileWriter(str(folder), flush_secs=5)

    def write(self, step: int, scalars: Mapping[str, float | int], wall_time: float) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()])
        self._writer.add_event(Event(step=step, wall_time=wall_time, summary=summary))

    def close(self) -> None:
        self._writer.close()

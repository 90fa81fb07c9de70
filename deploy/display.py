"""What the terminal shows while a run is up: every log line, or one plain line per step (live view: `live_view.py`)."""

from __future__ import annotations

import sys
import time
from typing import IO, Protocol

from deploy.log_lines import LEVELS, Record, level_of
from deploy.run_data import Row, RunData


class Display(Protocol):
    """Shown to by the launcher: `show` for each line of a process, `tick` about once a second."""

    def show(self, process: str, record: Record) -> None: ...

    def tick(self) -> None: ...


def clock(seconds: float) -> str:
    """``4:07``, ``1:04:07``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def number(value: object, pattern: str = "{:.3f}", none: str = "–") -> str:
    """A metric as text; undefined is a dash."""
    return pattern.format(value) if isinstance(value, int | float) else none


def progress_line(row: Row, data: RunData) -> str:
    """One step in one line."""
    if row.get("stage") == "value_pretraining":
        gate = data.config.value_pretraining.min_explained_variance
        parts = [f"value pretraining {row['step']:>3}/{data.config.value_pretraining.max_steps}"]
        if row.get("vp/recorded") is not None and row.get("vp/train_loss") is None:
            parts.append(f"recorded {row['vp/recorded']:.0f}/{data.config.value_pretraining.num_trajectories}")
        if row.get("vp/train_loss") is not None:
            parts.append(f"loss {number(row['vp/train_loss'])}")
        if row.get("vp/held_out_explained_variance") is not None:
            parts.append(f"held-out explained variance {number(row['vp/held_out_explained_variance'])} (gate {gate:g})")
        return " · ".join(parts)
    return " · ".join(
        [
            f"rl {row['step']:>3}/{data.config.rl.num_steps}",
            f"accuracy {number(row.get('reward/accuracy'))}",
            f"length {number(row.get('length/mean'), '{:.0f}')}",
            f"explained variance {number(row.get('explained_variance/token'), '{:.2f}')}",
            f"staleness {number(row.get('staleness/mean'), '{:.2f}')} max {number(row.get('staleness/max'), '{:.0f}')}",
            f"{number(row.get('tokens/per_second'), '{:,.0f}')} tokens/s",
            f"{number(row.get('time/step'), '{:.1f}')} s",
        ]
    )


class ProgressLines:
    """Without a terminal: one plain line per step, and what processes report as warnings (ours) or errors."""

    def __init__(self, data: RunData | None = None, stream: IO[str] | None = None) -> None:
        self.data = data
        self.stream = stream or sys.stdout
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        self.stream.write(f"[{clock(time.monotonic() - self.started):>5}] {text}\n")
        self.stream.flush()

    def show(self, process: str, record: Record) -> None:
        ours = str(record.get("logger", "")).split(".")[0] in ("learner", "generator", "common", "deploy")
        if level_of(record) >= LEVELS["error"] or (ours and level_of(record) >= LEVELS["warning"]):
            fields = {
                k: v
                for k, v in record.items()
                if k
                not in ("time", "level", "service", "run_id", "event", "logger", "exception", "stack", "unstructured")
            }
            self.say(
                f"{process}: {record.get('level')}: {record.get('event')} "
                + " ".join(f"{k}={v}" for k, v in fields.items())
            )
        elif str(record.get("event")).endswith("ready") and not record.get("unstructured"):
            self.say(f"{record.get('process', process)}: {record['event'].replace('_', ' ')}")

    def tick(self) -> None:
        if self.data is not None:
            for row in self.data.refresh().new:
                self.say(progress_line(row, self.data))

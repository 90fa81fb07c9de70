"""What the terminal shows while a run is up: every log line, or one plain line per step (live view: `live_view.py`)."""

from __future__ import annotations

import sys
import time
from typing import IO, Protocol

from vcppo.common.telemetry.log_render import OUR_LOGGERS
from vcppo.deploy.logs.log_lines import LEVELS, Record, level_of
from vcppo.deploy.run.run_data import Row, RunData
from vcppo.deploy.terminal import outcomes_view

NEWS = ("ready", "sft_step", "evaluation_done", "checkpoint_loaded", "step_replayed", "value_pretraining_decided")
UNSAID = ("time", "level", "service", "run_id", "event", "logger", "exception", "stack", "unstructured", "process")


class Display(Protocol):
    """Shown to by the launcher: `show` for each line of a process, `tick` about once a second."""

    def show(self, process: str, record: Record) -> None:
        """Take one log line of a process."""

    def tick(self) -> None:
        """Look for new metrics and draw."""


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
    settings = data.config.value_pretraining
    if row.get("stage") == "value_pretraining":
        if "vp/held_out_explained_variance" not in row:
            right = f" · {row['vp/accuracy']:.1%} right" if "vp/accuracy" in row else ""
            return (
                f"recording the frozen policy · {data.num_recorded} of {settings.num_trajectories} trajectories{right}"
            )
        quality = number(row["vp/held_out_explained_variance"])
        return (
            f"value pretraining {row['step']:>3} · loss {number(row.get('vp/train_loss'))} · "
            f"held-out explained variance {quality} (gate {settings.min_explained_variance:g})"
        )
    if row.get("stage") == "evaluation":
        return evaluation_line(row)
    of = data.config.rl.batch_size
    others = outcomes_view.others_line(row, of, besides=("right", "wrong"))
    return " · ".join(
        [
            f"rl {row['step']:>3}/{data.config.rl.num_steps}",
            f"accuracy {outcomes_view.accuracy(row, of)}",
            *([others] if others else []),
            f"length {number(row.get('length/mean'), '{:.0f}')}",
            f"explained variance {number(row.get('explained_variance/token'), '{:.2f}')}",
            f"staleness {number(row.get('staleness/mean'), '{:.2f}')} max {number(row.get('staleness/max'), '{:.0f}')}",
            f"{number(row.get('tokens/per_second'), '{:,.0f}')} tokens/s",
            f"{number(row.get('time/step'), '{:.1f}')} s",
        ]
    )


def evaluation_line(row: Row) -> str:
    """An evaluation during training in one line."""
    low, high = (number(row.get(f"eval/accuracy_{end}"), "{:.1%}") for end in ("low", "high"))
    return " · ".join(
        [
            f"held out, version {row['step']}",
            f"accuracy {number(row.get('eval/accuracy'), '{:.1%}')} [{low}, {high}]",
            f"{number(row.get('eval/num_problems'), '{:.0f}')} problems",
            f"length {number(row.get('eval/mean_length'), '{:.0f}')}",
            f"{number(row.get('eval/seconds'), '{:.1f}')} s",
            f"training waited {number(row.get('eval/stall_seconds'), '{:.1f}')} s",
        ]
    )


class ProgressLines:
    """Without a terminal: one plain line per step, and what processes report as warnings (ours) or errors."""

    def __init__(self, data: RunData | None = None, stream: IO[str] | None = None) -> None:
        self.data = data
        self.stream = stream or sys.stdout
        self.started = time.monotonic()

    def say(self, text: str) -> None:
        """One line, with the time since the start."""
        self.stream.write(f"[{clock(time.monotonic() - self.started):>5}] {text}\n")
        self.stream.flush()

    def show(self, process: str, record: Record) -> None:
        """Print what is news: our warnings, others' errors, and the events in `NEWS`."""
        event, ours = str(record.get("event")), str(record.get("logger", "")).split(".")[0] in OUR_LOGGERS
        if level_of(record) >= (LEVELS["warning"] if ours else LEVELS["error"]) or event in NEWS:
            fields = " ".join(f"{name}={value}" for name, value in record.items() if name not in UNSAID)
            self.say(f"{process}: {event.replace('_', ' ')} {fields}".rstrip())

    def tick(self) -> None:
        """A line for each step that came since the last call."""
        if self.data is not None:
            for row in self.data.refresh().new:
                self.say(progress_line(row, self.data))

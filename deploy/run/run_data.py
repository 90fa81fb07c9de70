"""What a run has written so far, read from its folder: the one source of progress lines, live view and report."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import VcppoError
from vcppo.common.evaluation.on_the_way import has_plateaued, read_evaluations
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.json_lines import JsonLinesTail, Row, read_json_lines
from vcppo.common.run_folder import DECISION_FILE, RunFolder
from vcppo.common.text.yaml_text import one_line

__all__ = ["JsonLinesTail", "Row", "RunData", "column", "is_exact", "read_json", "seconds_between", "series"]

TRAINING_STAGE = "value pretraining and rl"
"""Name of the stage, in a run's stages.jsonl, that `vcppo up` is."""

LEDGER_STATES = ("issued", "queued", "leased", "buffered", "claimed", "trained", "rejected", "expired", "evaluated")
_CAME_LATER = ("evaluated", "without_signal")  # runs of an older version have none


@dataclass
class RunData:
    """A run's records.

    Attributes:
        rl: one row per learner step, in order; a step done again after a crash counts once, as done last.
        value_pretraining: one row per measurement, likewise.
        evaluations: one row per version evaluated during training; its step is that version.
        generators: rows by generator name.
        new: learner rows of the last `refresh`; not those a step writes before its broadcast, which are repeated.
        num_recorded: trajectories recorded for value pretraining.
        recorded: the newest row of the recording: outcomes, lengths, rewards; empty before.
    """

    folder: RunFolder
    config: VcppoConfig
    rl: list[Row] = field(default_factory=list)
    value_pretraining: list[Row] = field(default_factory=list)
    evaluations: list[Row] = field(default_factory=list)
    generators: dict[str, list[Row]] = field(default_factory=dict)
    new: list[Row] = field(default_factory=list)
    num_recorded: int = 0
    recorded: Row = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._tails: dict[str, JsonLinesTail] = {}
        self._steps: dict[str, dict[int, Row]] = {"rl": {}, "value_pretraining": {}, "evaluation": {}}

    @classmethod
    def load(cls, folder: RunFolder) -> RunData:
        """Everything the run in `folder` has written."""
        data = cls(folder, load_config(folder.config))
        data.refresh()
        return data

    def refresh(self) -> RunData:
        """Read what was added since the last call."""
        rows = self._read("learner")
        self.new = rows
        for row in rows:
            if recorded := column([row], "vp/recorded"):
                self.num_recorded = max(self.num_recorded, int(recorded[0]))
                self.recorded = row
            steps = self._steps.get(row.get("stage", "rl"))
            # A row of value pretraining that only counts recordings is no step.
            measured = row.get("stage") != "value_pretraining" or "vp/held_out_explained_variance" in row
            if measured and row.get("stage") == "value_pretraining" and row.get("step") == 0 and steps is not None:
                steps.clear()  # the critic is trained again
            if measured and steps is not None:
                steps[row["step"]] = {**steps.get(row["step"], {}), **row}
        if rows:
            self.rl, self.value_pretraining, self.evaluations = (
                [row for _, row in sorted(self._steps[stage].items())]
                for stage in ("rl", "value_pretraining", "evaluation")
            )
        for path in sorted(self.folder.metrics.glob("generator-*.jsonl")):
            self.generators.setdefault(path.stem, []).extend(self._read(path.stem))
        return self

    def _read(self, service: str) -> list[Row]:
        tail = self._tails.setdefault(service, JsonLinesTail(self.folder.metrics_file(service)))
        return [row for row in tail.read() if _is_metrics_row(row)]

    # ---- facts

    @property
    def decision(self) -> Row | None:
        """What value pretraining decided; None before."""
        return read_json(self.folder.value_pretraining / DECISION_FILE)

    @property
    def finished(self) -> bool:
        """Whether all RL steps were done, or no more are wanted (``eval.patience``), and the policy exported."""
        done, settings = self.rl[-1]["step"] if self.rl else 0, self.config.eval
        is_done = done >= self.config.rl.num_steps or has_plateaued(
            read_evaluations(self.folder.evaluations), settings.best_by, settings.patience
        )
        return is_done and (self.folder.export / "config.json").exists()

    @property
    def num_broadcasts(self) -> int:
        """RL steps after which weights were sent."""
        return sum(1 for row in self.rl if row.get("time/broadcast") is not None)

    @property
    def max_staleness(self) -> float | None:
        """Largest staleness trained; None before the first step."""
        return max((row["staleness/max"] for row in self.rl if row.get("staleness/max") is not None), default=None)

    @property
    def mixed_version_fraction(self) -> float | None:
        """Share of trained trajectories made by more than one policy version."""
        shares = column(self.rl, "staleness/mixed_version_fraction")
        return sum(shares) / len(shares) if shares else None

    @property
    def ledger(self) -> dict[str, int] | None:
        """The ledger as last written down: at the end of a run, else at its last step. ``without_signal`` is of the
        rejected."""
        counts = read_json(self.folder.path / "ledger.json")
        if counts is None and self.rl:
            counts = {name: self.rl[-1].get(f"ledger/{name}") for name in (*LEDGER_STATES, "without_signal")}
        if counts is None or any(counts.get(name) is None for name in LEDGER_STATES if name not in _CAME_LATER):
            return None
        return {name: int(counts.get(name) or 0) for name in (*LEDGER_STATES, "without_signal")}

    def stage_seconds(self) -> dict[str, float]:
        """Wall time by stage, from the launcher's notes."""
        seconds: dict[str, float] = {}
        for row in read_json_lines(self.folder.path / "stages.jsonl"):
            stage = str(row.get("stage"))
            seconds[stage] = seconds.get(stage, 0.0) + sum(column([row], "seconds"))
        return seconds


def _is_metrics_row(row: Row) -> bool:
    """Whether it has what every line of a metrics file has; a damaged line may be JSON of another kind."""
    try:
        datetime.fromisoformat(row["time"])
    except (KeyError, TypeError, ValueError):
        return False
    return isinstance(row.get("step"), int) and isinstance(row.get("stage", "rl"), str)


def column(rows: list[Row], name: str) -> list[float]:
    """The numbers of one metric, undefined ones left out."""
    return [row[name] for row in rows if _is_number(row.get(name))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def series(rows: list[Row], name: str) -> tuple[list[int], list[float]]:
    """(steps, numbers) of one metric, undefined ones left out."""
    kept = [row for row in rows if _is_number(row.get(name))]
    return [row["step"] for row in kept], [row[name] for row in kept]


def read_json(path: Path) -> Row | None:
    """A JSON object, None when there is none. Raises VcppoError when the file can't be read."""
    try:
        value = parse_json(path.read_bytes())
    except (FileNotFoundError, JsonError):
        return None
    except OSError as error:
        raise VcppoError(f"{path}: can't be read: {one_line(error)}") from error
    return value if isinstance(value, dict) else None


def is_exact(ledger: Mapping[str, int]) -> bool:
    """The ledger's invariant."""
    return ledger["issued"] == sum(ledger[name] for name in LEDGER_STATES[1:])


def seconds_between(first: Row, last: Row) -> float:
    """Seconds from one row's time to another's."""
    return (datetime.fromisoformat(last["time"]) - datetime.fromisoformat(first["time"])).total_seconds()

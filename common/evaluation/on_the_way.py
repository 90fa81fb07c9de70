"""Evaluations during training: a line each in <run>/evaluations.jsonl, and which of them is the best. Pure but for
reading that file.

The learner writes a line when the last answer to a version's held-out problems is there. The run's export, `vcppo ui`
and the report read them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from vcppo.common.files.json_lines import Row, read_json_lines

Figure = Literal["pass_at_1", "pass_at_k"]


def read_evaluations(path: Path) -> list[Row]:
    """In the order of versions; of a version that was evaluated twice (after a crash) the last line."""
    found = {row["version"]: row for row in read_json_lines(path) if _is_evaluation(row)}
    return [row for _, row in sorted(found.items())]


def best_of(rows: Sequence[Row], by: Figure) -> Row | None:
    """The row with the largest figure, the earliest of several; None without any."""
    return max(rows, key=lambda row: float(row[by]), default=None)


def has_plateaued(rows: Sequence[Row], by: Figure, patience: int) -> bool:
    """Whether the last `patience` evaluations were no better than the best before them. Never with patience 0."""
    if not patience or len(rows) <= patience:
        return False
    earlier = best_of(rows[:-patience], by)
    return earlier is not None and all(float(row[by]) <= float(earlier[by]) for row in rows[-patience:])


def is_due(version: int, *, every: int, at_start: bool, num_steps: int) -> bool:
    """Whether this policy version is evaluated: each `every`-th and the last; the untrained one if asked for."""
    if version == 0:
        return at_start
    return every > 0 and (version % every == 0 or version == num_steps)


def _is_evaluation(row: Row) -> bool:
    """A damaged line may be JSON of another kind."""
    figures = (row.get("pass_at_1"), row.get("pass_at_k"))
    return type(row.get("version")) is int and all(isinstance(each, int | float) for each in figures)

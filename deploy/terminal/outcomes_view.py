"""Rates of RL steps and evaluations with the counts behind them: ``12.5% (8 of 64)``. Pure; no I/O.

Intervals are Wilson's, 95 %, as if responses were independent. Those to one prompt are not, so the true interval is
somewhat wider.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from vcppo.common.evaluation.intervals import wilson
from vcppo.common.records.trajectory import Outcome
from vcppo.deploy.run.run_data import Row, column

CUT = "cut by length"
_METRICS = {**{name: f"outcome/{name}" for name in get_args(Outcome)}, CUT: "length/truncated_fraction"}
_SHOWN_AS = {"correct": "right"}


def num_responses(row: Row, batch_size: int) -> int:
    """Of a step. Older runs did not write it down: then `batch_size`."""
    written = column([row], "reward/num_responses")
    return int(written[0]) if written else batch_size


def counts(rows: Sequence[Row], batch_size: int) -> tuple[dict[str, int], int]:
    """Outcome, in words, -> responses in all `rows`, and how many responses these are. Cut ones have an outcome too."""
    found = dict.fromkeys((_SHOWN_AS.get(name, name) for name in _METRICS), 0)
    total = 0
    for row in rows:
        of = num_responses(row, batch_size)
        total += of
        for name, metric in _METRICS.items():
            found[_SHOWN_AS.get(name, name)] += round(sum(column([row], metric)) * of)
    return found, total


def rate(count: int, of: int) -> str:
    """``12.5% (8 of 64)``; a dash of nothing."""
    return f"{count / of:.1%} ({count:,} of {of:,})" if of else "–"


def interval(count: int, of: int) -> str:
    """``95 %: 6.5 to 22.8``, in percent."""
    low, high = wilson(min(count, of), of)
    return f"95 %: {low * 100:.1f} to {high * 100:.1f}"


def accuracy(row: Row, batch_size: int) -> str:
    """Of one step, as `rate`; a dash where it was not measured."""
    shares = column([row], "reward/accuracy")
    of = num_responses(row, batch_size)
    return rate(round(shares[0] * of), of) if shares else "–"


def accuracy_interval(row: Row, batch_size: int) -> str:
    """Its 95 % interval in percent; empty where accuracy was not measured."""
    shares = column([row], "reward/accuracy")
    of = num_responses(row, batch_size)
    return interval(round(shares[0] * of), of) if shares else ""


def others_line(row: Row, batch_size: int, *, besides: Sequence[str] = ("right",)) -> str:
    """``40 wrong · 12 unparsable · 3 cut by length``: what occurred, but for `besides`."""
    found, _ = counts([row], batch_size)
    return " · ".join(f"{count:,} {name}" for name, count in found.items() if count and name not in besides)

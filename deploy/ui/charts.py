"""The charts of a run: which metrics, under which names. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Chart:
    """One chart; `lines` is label to metric."""

    title: str
    lines: Mapping[str, str]
    note: str = ""


RL_CHARTS = (
    Chart("Accuracy", {"training batches": "reward/accuracy"}),
    Chart("Reward", {"mean": "reward/mean"}),
    Chart("Explained variance", {"critic": "explained_variance/token"}, "of the outcome; 1 is a perfect critic"),
    Chart("Length", {"mean": "length/mean", "longest": "length/max"}, "tokens of a response"),
    Chart("Staleness", {"mean": "staleness/mean", "largest": "staleness/max"}, "policy versions"),
    Chart("Tokens a second", {"learner": "tokens/per_second"}),
    Chart(
        "Seconds of a step",
        {
            "wait for a batch": "time/claim", "values": "time/values", "old log-probs": "time/old_log_probs",
            "update": "time/update", "broadcast": "time/broadcast", "checkpoint": "time/checkpoint",
        },
    ),
    Chart("Entropy", {"policy": "policy/entropy"}, "nats a token"),
    Chart("Clipped", {"share of tokens": "policy/clip_fraction"}),
    Chart(
        "Mismatch of log-probs", {"KL, mean": "off_policy/mismatch_kl", "KL, 99 %": "off_policy/mismatch_kl_p99"},
        "vLLM's against the learner's, nats a token",
    ),
    Chart("Gradient norms", {"actor": "policy/grad_norm", "critic": "critic/grad_norm"}),
    Chart("Turns", {"mean": "turns/mean", "most": "turns/max"}),
)  # fmt: skip
VALUE_PRETRAINING_CHARTS = (
    Chart("Held-out explained variance", {"critic": "vp/held_out_explained_variance"}, "value pretraining"),
)


MOST_POINTS = 2000


def thinned(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """At most `MOST_POINTS` of them, evenly, the last one included: a screen shows no more."""
    stride = -(-len(rows) // MOST_POINTS)
    return rows if stride <= 1 else rows[(len(rows) - 1) % stride :: stride]


def drawn(chart: Chart, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows have any of its numbers."""
    return any(_number(row.get(metric)) is not None for metric in chart.lines.values() for row in rows)


def points(chart: Chart, rows: Sequence[Mapping[str, Any]]) -> list[list[float | int | None]]:
    """Steps, then each line's numbers at these steps, None where there is none: what uPlot takes."""
    return [
        [row["step"] for row in rows],
        *([_number(row.get(metric)) for row in rows] for metric in chart.lines.values()),
    ]


def overlaid(metric: str, runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[list[float | int | None]]:
    """Of several runs one metric, over the steps that any of them has."""
    steps = sorted({row["step"] for rows in runs.values() for row in rows})
    columns: list[list[float | int | None]] = [list(steps)]
    for rows in runs.values():
        found = {row["step"]: _number(row.get(metric)) for row in rows}
        columns.append([found.get(step) for step in steps])
    return columns


def _number(value: object) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

"""The charts of a run: which metrics, under which names, and what a browser gets of them. Pure.

Held-out accuracy is measured at some steps only (``eval/accuracy``, of a benchmark ``eval/NAME/accuracy``), each with
its 95 % interval; a chart draws it as points with the interval, and lines between.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vcppo.deploy.evaluation.explainable_results import ExplainableRow
from vcppo.deploy.run.measured_accuracy import HELD_OUT, metrics_of
from vcppo.deploy.ui.weight_updates import Update

Rows = Sequence[Mapping[str, Any]]
Numbers = list[float | int | None]


@dataclass(frozen=True)
class Line:
    """One line: a metric, and the metrics of the two ends of its interval, where it has one; points alone where they
    are not joined."""

    metric: str
    low: str = ""
    high: str = ""
    is_joined: bool = True


@dataclass(frozen=True)
class Chart:
    """One chart; `lines` is label to metric. `span`: the ends of the upward axis; None: as the numbers need it."""

    title: str
    lines: Mapping[str, str | Line]
    note: str = ""
    span: tuple[float, float] | None = None
    is_share: bool = False
    across: str = "step"


EVALUATED = Line("evaluated/accuracy", "evaluated/low", "evaluated/high", is_joined=False)
EXPLAINABLE = Line("explainable/mean", "explainable/least", "explainable/most")
EXPLAINED_VARIANCE = Chart(
    "Explained variance", {"critic": "explained_variance/token", "explainable, mean of positions": EXPLAINABLE},
    "share of the outcome's variance that the critic explains; 1 is a perfect critic",
)  # fmt: skip
RL_CHARTS = (
    Chart("Reward", {"mean": "reward/mean"}),
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
    Chart(
        "Value pretraining", {"explained variance, held out": "vp/held_out_explained_variance"},
        "before RL: the critic learns from recorded responses", across="step of value pretraining",
    ),
)  # fmt: skip
COLD_START_CHARTS = (
    Chart("Cold start", {"loss": "sft/loss"}, "supervised, before RL; nats a token", across="step of the cold start"),
)
COMPARED = (
    Chart("Accuracy", {"": "reward/accuracy"}, "of training batches", (0.0, 1.0), is_share=True),
    Chart("Held-out accuracy", {"": Line(*HELD_OUT)}, "intervals of 95 %", (0.0, 1.0), is_share=True),
    Chart("Reward", {"": "reward/mean"}),
    Chart("Explained variance", {"": "explained_variance/token"}, "of the critic; 1 is a perfect one"),
    Chart("Length", {"": "length/mean"}, "tokens of a response"),
)


MOST_POINTS = 2000


def thinned(rows: Rows) -> Rows:
    """At most `MOST_POINTS` of them, evenly, the last one included: a screen shows no more."""
    stride = -(-len(rows) // MOST_POINTS)
    return rows if stride <= 1 else rows[(len(rows) - 1) % stride :: stride]


def accuracy_chart(evaluations: Rows) -> Chart:
    """Of training batches, held-out problems, and each benchmark that the evaluations have."""
    lines: dict[str, str | Line] = {"training batches": "reward/accuracy"}
    for label, found in metrics_of(evaluations).items():
        lines[label] = Line(found.accuracy, found.low, found.high)
    lines["vcppo eval, held out"] = EVALUATED
    return Chart("Accuracy", lines, "intervals of 95 %", (0.0, 1.0), is_share=True)


def together(rows: Rows, *others: Iterable[Mapping[str, Any]]) -> Rows:
    """The rows with what others have at the same steps, or at more of them."""
    found = {row["step"]: dict(row) for row in rows}
    for some in others:
        for row in some:
            found[row["step"]] = {**found.get(row["step"], {}), **row}
    return [row for _, row in sorted(found.items())]


def drawn(chart: Chart, rows: Rows) -> bool:
    """Whether the rows have any of its numbers."""
    return any(_number(row.get(line.metric)) is not None for line in _lines(chart).values() for row in rows)


def for_browser(chart: Chart, rows: Rows) -> dict[str, Any]:
    """What the script draws: steps, then each line's numbers at these steps, None where there is none.

    A line that the rows have nothing of is left out.
    """
    lines = {
        label: line
        for label, line in _lines(chart).items()
        if any(_number(row.get(line.metric)) is not None for row in rows)
    }
    columns = {label: _columns(line, rows) for label, line in lines.items()}
    return _chart(chart, [row["step"] for row in rows], columns) | {
        "is_joined": [line.is_joined for line in lines.values()]
    }


def overlaid(chart: Chart, runs: Mapping[str, Rows]) -> dict[str, Any]:
    """The one line of `chart` of several runs, over the steps that any of them has."""
    (line,) = _lines(chart).values()
    found = {key: {row["step"]: row for row in rows} for key, rows in runs.items()}
    steps = sorted({step for rows in found.values() for step in rows})
    columns = {key: _columns(line, [rows.get(step, {}) for step in steps]) for key, rows in found.items()}
    return _chart(chart, steps, columns)


def explainable_chart(rows: Sequence[ExplainableRow]) -> dict[str, Any] | None:
    """Of the newest version that was measured: what a state tells of the outcome, and what the critic makes of it, by
    the tokens before the state. None of nothing."""
    newest = max((row.version for row in rows), default=None)
    some = [row for row in rows if row.version == newest and row.explainable is not None]
    if not some:
        return None
    found = [
        {"step": row.position} | _ends("explainable", row.explainable, row.explainable_interval)
        | _ends("critic", row.explained, row.explained_interval)
        for row in some
    ]  # fmt: skip
    lines = {name: Line(name, f"{name}/low", f"{name}/high") for name in ("explainable", "critic")}
    note = f"policy version {newest}: what a perfect critic could explain there, and what this one does; 90 % intervals"
    return for_browser(
        Chart("Explained against explainable", lines, note, across="tokens before the state"), found
    )  # fmt: skip


def explainable_by_version(rows: Sequence[ExplainableRow]) -> list[dict[str, Any]]:
    """A row a version: the mean over positions behind the prompt, and from the least to the most."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.position and row.explainable is not None:
            found.setdefault(row.version, []).append(row.explainable)
    return [
        {
            "step": version, EXPLAINABLE.metric: sum(shares) / len(shares),
            EXPLAINABLE.low: min(shares), EXPLAINABLE.high: max(shares),
        }
        for version, shares in found.items()
    ]  # fmt: skip


def updates_chart(updates: Sequence[Update]) -> dict[str, Any] | None:
    """How long each weight update took; None without any."""
    rows = [{"step": each.version, "seconds": each.seconds, "pause": each.pause_seconds} for each in _every_of(updates)]
    chart = Chart(
        "Weight updates", {"whole update": "seconds", "longest stop of a generator": "pause"}, "seconds",
        across="policy version",
    )  # fmt: skip
    return for_browser(chart, rows) if rows else None


def _every_of(updates: Sequence[Update]) -> Sequence[Update]:
    """A version that was sent again counts once, as sent last."""
    stride = -(-len(updates) // MOST_POINTS) or 1
    return list({each.version: each for each in updates[(len(updates) - 1) % stride :: stride]}.values())


def _ends(name: str, value: float | None, interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {name: value, f"{name}/low": low, f"{name}/high": high}


def _lines(chart: Chart) -> dict[str, Line]:
    return {label: Line(line) if isinstance(line, str) else line for label, line in chart.lines.items()}


def _columns(line: Line, rows: Rows) -> tuple[Numbers, list[Numbers] | None]:
    """A line's numbers; those of its interval's ends, None without one."""
    numbers: Numbers = [_number(row.get(line.metric)) for row in rows]
    ends: list[Numbers] = [[_number(row.get(name)) for row in rows] for name in (line.low, line.high) if name]
    return numbers, ends if len(ends) == 2 and any(end is not None for end in ends[0]) else None


def _chart(
    chart: Chart, steps: list[int], columns: Mapping[str, tuple[Numbers, list[Numbers] | None]]
) -> dict[str, Any]:
    return {
        "title": chart.title, "note": chart.note, "across": chart.across, "span": chart.span,
        "is_share": chart.is_share, "labels": list(columns), "points": [steps, *(each for each, _ in columns.values())],
        "intervals": [ends for _, ends in columns.values()], "is_joined": [True] * len(columns),
    }  # fmt: skip


def _number(value: object) -> float | None:
    """JSON has no NaN and no infinity."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

"""The figures of a run. Each draws on one axes and names the data it shows; a figure without data is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vcppo.common.telemetry.metric_names import series_of
from vcppo.deploy.evaluation.explainable_results import Ends, ExplainableRow
from vcppo.deploy.evaluation.workers import EvalResult
from vcppo.deploy.run.run_data import Row, RunData, series

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY = (
    "#2563eb",
    "#ea7317",
    "#2a9d57",
    "#8b5cf6",
    "#d64545",
    "#0d9488",
    "#9aa5b1",
)
COMPONENT_LOOKS = tuple(  # one after the other; a line style further when the colours are used up
    (colour, style) for style in ("-", "--", ":") for colour in (BLUE, ORANGE, GREEN, PURPLE, TEAL, RED, GREY)
)
PHASES = (  # metric, label, colour: in the order of a step
    ("time/critic_passes", "critic's passes", GREEN),
    ("time/claim", "wait for batch", GREY),
    ("time/values", "values", TEAL),
    ("time/old_log_probs", "old log-probs", BLUE),
    ("time/update", "update", ORANGE),
    ("time/checkpoint", "checkpoint", PURPLE),
    ("time/broadcast", "broadcast", RED),
)
LEFT_OUT_KINDS = (  # of dynamic sampling: metric, label, colour
    ("all_correct", "left out: all correct", GREEN),
    ("all_wrong", "left out: all wrong", RED),
    ("same_reward", "left out: one reward", PURPLE),
    ("trained_without_signal", "trained all the same", GREY),
)
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9.5, "axes.titlesize": 11.5, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.titlepad": 10, "axes.edgecolor": GRID, "axes.labelcolor": MUTED,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "text.color": INK, "axes.titlecolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 8.5,
    "lines.linewidth": 2.0, "figure.facecolor": "white", "savefig.facecolor": "white",
}  # fmt: skip


@dataclass(frozen=True)
class FigureData:
    """What figures are drawn from."""

    run: RunData
    evals: Sequence[EvalResult]
    explainable: Sequence[ExplainableRow] = ()


def _steps(ax: Axes, label: str = "learner step") -> None:
    ax.set_xlabel(label)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))


def _line(ax: Axes, rows: list[Row], name: str, label: str, colour: str, **options: Any) -> bool:
    steps, values = series(rows, name)
    if values:
        ax.plot(steps, values, color=colour, label=label, **options)
        if len(values) == 1:
            ax.plot(steps, values, "o", color=colour, markersize=4)
    return bool(values)


def _legend(ax: Axes, **options: Any) -> None:
    if ax.get_legend_handles_labels()[0]:
        ax.legend(**options)


def _bar(result: EvalResult) -> list[list[float]]:
    """matplotlib's error bar: distances below and above."""
    return [[result.pass_at_1 - result.low], [result.high - result.pass_at_1]]


def accuracy(ax: Axes, data: FigureData) -> bool:
    """Training accuracy by step, evaluations before and after with their intervals."""
    drawn = _line(ax, data.run.rl, "reward/accuracy", "training batches", BLUE)
    ends = (0, data.run.rl[-1]["step"] if data.run.rl else 1)
    for result, x in zip(data.evals, ends, strict=False):
        colour, label = GREEN if x else GREY, f"held out, {result.name}"
        ax.errorbar(x, result.pass_at_1, yerr=_bar(result), fmt="D", color=colour, capsize=4, label=label, zorder=5)
    _held_out_on_the_way(ax, data)
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title("Accuracy")
    _legend(ax, loc="best")
    _steps(ax)
    return drawn or bool(data.evals) or bool(data.run.evaluations)


def _held_out_on_the_way(ax: Axes, data: FigureData) -> None:
    """Evaluations during training (eval.every), with their intervals."""
    names = ("step", "eval/accuracy", "eval/accuracy_low", "eval/accuracy_high")
    rows = [row for row in data.run.evaluations if all(isinstance(row.get(name), int | float) for name in names)]
    if not rows:
        return
    x, y, low, high = ([float(row[name]) for row in rows] for name in names)
    bars = [
        [max(0.0, m - a) for m, a in zip(y, low, strict=True)],
        [max(0.0, b - m) for m, b in zip(y, high, strict=True)],
    ]
    ax.errorbar(x, y, yerr=bars, fmt="o-", color=GREEN, alpha=0.7, capsize=3, label="held out, on the way", zorder=4)


def reward(ax: Axes, data: FigureData) -> bool:
    """Mean reward by step."""
    drawn = _line(ax, data.run.rl, "reward/mean", "reward", BLUE)
    ax.set_title("Mean reward")
    _steps(ax)
    return drawn


def reward_components(ax: Axes, data: FigureData) -> bool:
    """Mean of each part of the reward by step, unweighted."""
    names = sorted({name for row in data.run.rl for name in row if _is_component(name)})
    for name, (colour, style) in zip(names, cycle(COMPONENT_LOOKS), strict=False):
        _line(ax, data.run.rl, name, name.removeprefix("reward/"), colour, linestyle=style)
    ax.set_title("Parts of the reward")
    _legend(ax, loc="best")
    _steps(ax)
    return bool(names)


def reward_by_turn(ax: Axes, data: FigureData) -> bool:
    """Mean reward of each turn of an environment's rollouts, by step."""
    found = [(row["step"], row["turns/reward_by_turn"]) for row in data.run.rl if row.get("turns/reward_by_turn")]
    most = max((len(means) for _, means in found), default=0)
    for turn, (colour, style) in zip(range(most), cycle(COMPONENT_LOOKS), strict=False):
        points = [(step, means[turn]) for step, means in found if len(means) > turn]
        ax.plot(*zip(*points, strict=True), color=colour, linestyle=style, label=f"turn {turn + 1}")
    ax.set_title("Reward by turn")
    _legend(ax, loc="best")
    _steps(ax)
    return bool(found)


def dynamic_sampling(ax: Axes, data: FigureData) -> bool:
    """Groups left out for want of signal before each step, by kind, and the groups that were trained without any."""
    lines = [(f"dynamic_sampling/{kind}", label, colour) for kind, label, colour in LEFT_OUT_KINDS]
    return _counts(ax, data, lines, "Groups without signal", "groups")


def difficulty(ax: Axes, data: FigureData) -> bool:
    """Problems of the data set by how often they were answered right so far."""
    pools = (("new", GREY), ("easy", GREEN), ("edge", BLUE), ("hard", RED))
    lines = [(f"difficulty/problems/{pool}", pool, colour) for pool, colour in pools]
    return _counts(ax, data, lines, "Difficulty of the problems", "problems")


def _counts(ax: Axes, data: FigureData, lines: Sequence[tuple[str, str, str]], title: str, unit: str) -> bool:
    """Metrics of RL by step from 0 up: (metric, label, colour) each."""
    drawn = False
    for metric, label, colour in lines:
        drawn |= _line(ax, data.run.rl, metric, label, colour)
    ax.set_ylim(bottom=0)
    ax.set_title(title)
    ax.set_ylabel(unit)
    _legend(ax, loc="best")
    _steps(ax)
    return drawn


def _is_component(name: str) -> bool:
    return name.startswith("reward/") and series_of(name).metric.label == "component"


def length(ax: Axes, data: FigureData) -> bool:
    """Mean and longest response, against the limit where responses are cut off."""
    drawn = _line(ax, data.run.rl, "length/mean", "mean", BLUE)
    drawn |= _line(ax, data.run.rl, "length/max", "longest", GREY, linewidth=1.2)
    ax.axhline(data.run.config.sampling.max_response_tokens, color=RED, linestyle=":", linewidth=1.2, label="limit")
    ax.set_ylim(bottom=0)
    ax.set_title("Response length")
    ax.set_ylabel("tokens")
    _legend(ax, loc="lower right")
    _steps(ax)
    return drawn


def turns(ax: Axes, data: FigureData) -> bool:
    """Mean turns of an environment's rollouts by step, and their calls of tools."""
    drawn = _line(ax, data.run.rl, "turns/mean", "turns", BLUE)
    _line(ax, data.run.rl, "turns/tool_calls", "calls of tools", ORANGE)
    _line(ax, data.run.rl, "turns/tool_errors", "calls that came to nothing", RED)
    ax.set_ylim(bottom=0)
    ax.set_title("Turns and calls of tools a rollout")
    _legend(ax, loc="best")
    _steps(ax)
    return drawn


def value_pretraining(ax: Axes, data: FigureData) -> bool:
    """Held-out explained variance of value pretraining, with its 90 % interval over prompts, against its gate."""
    rows, gate = data.run.value_pretraining, data.run.config.value_pretraining.min_explained_variance
    drawn = _line(ax, rows, "vp/held_out_explained_variance", "explained variance", GREEN, marker="o", markersize=4)
    band = [row for row in rows if row.get("vp/held_out_explained_variance_low") is not None]
    if band:
        low, high = (series(band, f"vp/held_out_explained_variance_{end}")[1] for end in ("low", "high"))
        ax.fill_between([row["step"] for row in band], low, high, color=GREEN, alpha=0.15, linewidth=0)
    drawn |= _line(ax, rows, "vp/held_out_loss", "value loss", ORANGE, linewidth=1.5)
    ax.axhline(gate, color=RED, linestyle="--", linewidth=1.4, label=f"gate {gate:g}")
    best = (data.run.decision or {}).get("best_step")
    if best is not None:
        ax.axvline(best, color=GREY, linewidth=1, label="checkpoint kept")
    ax.set_title("Value pretraining, held-out prompts")
    _legend(ax, loc="best")
    _steps(ax, "value-pretraining step")
    return drawn


def explained_variance(ax: Axes, data: FigureData) -> bool:
    """The critic's explained variance against Monte-Carlo returns during RL; where `vcppo explainable` has measured it,
    what a perfect critic would explain."""
    rows = data.run.rl
    drawn = _line(ax, rows, "explained_variance/token", "per token", BLUE)
    drawn |= _line(ax, rows, "explained_variance/sequence", "per sequence", TEAL)
    drawn |= _line(ax, rows, "explained_variance/within_prompt", "within prompt", PURPLE, linewidth=1.4)
    drawn |= _line(
        ax,
        rows,
        "critic_worth/prompt_mean/sequence",
        "mean of the prompt's others",
        GREY,
        linestyle="--",
        linewidth=1.4,
    )
    _explainable_by_version(ax, data.explainable)
    low = min(
        (min(series(rows, f"explained_variance/{k}")[1], default=0.0) for k in ("token", "sequence", "within_prompt")),
        default=0.0,
    )
    ax.set_ylim(max(-1.0, min(-0.05, low)), 1.25)  # room for the legend
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_title("Explained variance of the critic")
    _legend(ax, loc="upper left", ncols=2)
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= 1.01])
    _steps(ax)
    return drawn


def _explainable_by_version(ax: Axes, rows: Sequence[ExplainableRow]) -> None:
    """A mark a version: the mean over positions, and from the least to the most."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if row.position and row.explainable is not None:
            found.setdefault(row.version, []).append(row.explainable)
    for place, (version, shares) in enumerate(found.items()):
        mean = sum(shares) / len(shares)
        reach = [[mean - min(shares)], [max(shares) - mean]]
        label = "explainable, over positions" if place == 0 else None
        ax.errorbar(version, mean, yerr=reach, fmt="D", color=INK, markersize=5, elinewidth=1.2, label=label, zorder=5)


def explainable_by_position(ax: Axes, data: FigureData) -> bool:
    """What the outcome's variance owes to the state after so many tokens, by `vcppo explainable`: the most a critic can
    explain, and what this run's critic explains there; newest version measured, 90 % intervals over prompts."""
    newest = max((row.version for row in data.explainable), default=None)
    rows = [row for row in data.explainable if row.version == newest]
    for colour, label, figures in (
        (INK, "explainable", [(row.position, row.explainable, row.explainable_interval) for row in rows]),
        (BLUE, "critic", [(row.position, row.explained, row.explained_interval) for row in rows]),
    ):
        points = [(x, y, _reach(y, ends)) for x, y, ends in figures if y is not None]
        if points:
            below_and_above = np.array([reach for *_, reach in points]).T
            x, y = [point[0] for point in points], [point[1] for point in points]
            ax.errorbar(x, y, yerr=below_and_above, fmt="o-", markersize=4, color=colour, capsize=3, label=label)
    if (by_prompt := next((row.group_mean for row in rows if row.group_mean is not None), None)) is not None:
        ax.axhline(by_prompt, color=GREY, linestyle="--", linewidth=1.4, label="mean of the prompt's others")
    ax.axhline(0, color=MUTED, linewidth=0.8)
    low, _ = ax.get_ylim()
    ax.set_ylim(max(-1.0, min(-0.05, low)), 1.05)
    ax.set_title(f"Explainable variance at version {newest}")
    ax.set_xlabel("response tokens before the state")
    _legend(ax, loc="best")
    return bool(rows)


def _reach(value: float, interval: Ends | None) -> tuple[float, float]:
    """matplotlib's error bar: distances below and above."""
    return (0.0, 0.0) if interval is None else (max(0.0, value - interval[0]), max(0.0, interval[1] - value))


WORTH = (("critic", "critic", BLUE), ("prompt_mean", "mean of the prompt's other responses", GREY))


def critic_worth(ax: Axes, data: FigureData) -> bool:
    """Is the critic worth it? Explained variance by step, of the critic and of the mean return of the prompt's other
    responses, on the same tokens; above the grey line is what group baselines lack. Each response counts once."""
    drawn = False
    for who, label, colour in WORTH:
        drawn |= _line(ax, data.run.rl, f"critic_worth/{who}/sequence", label, colour)
    drawn |= _line(ax, data.run.rl, "critic_worth/critic/within_prompt", "critic, within prompt", PURPLE, linewidth=1.4)
    return _finish_worth(ax, drawn, "Critic against prompt mean", legend="best")


def critic_worth_by_position(ax: Axes, data: FigureData) -> bool:
    """The same by position in the response, mean of the last quarter of steps, every token counting once: what a critic
    knows more than the prompt it learns from the response, so its curve should rise."""
    drawn = _worth_curves(ax, data, "by_position", [f"{10 * tenth + 5} %" for tenth in range(10)])
    ax.set_xlabel("position in the response")
    return _finish_worth(ax, drawn, "Critic against prompt mean, by position", legend="best", by_step=False)


def critic_worth_by_staleness(ax: Axes, data: FigureData) -> bool:
    """The same by staleness of the trajectory in policy versions, mean of the last quarter of steps."""
    buckets = data.run.config.rl.max_staleness + 1
    drawn = _worth_curves(ax, data, "by_staleness", [str(bucket) for bucket in range(buckets)])
    ax.set_xlabel("staleness")
    return _finish_worth(ax, drawn, "Critic against prompt mean, by staleness", legend="best", by_step=False)


def _worth_curves(ax: Axes, data: FigureData, kind: str, ticks: Sequence[str]) -> bool:
    """A bar a bucket and predictor; buckets in which it was undefined at every step stay empty."""
    drawn = False
    for place, (who, label, colour) in enumerate(WORTH):
        rows = [row[name] for row in data.run.rl if isinstance(row.get(name := f"critic_worth/{who}/{kind}"), list)]
        table = np.array(rows[-max(1, len(rows) // 4) :], dtype=float)
        defined = np.flatnonzero(np.isfinite(table).any(axis=0))
        if not defined.size:
            continue
        heights = np.nanmean(table[:, defined], axis=0)
        ax.bar(defined + 0.4 * (place - 0.5), heights, 0.38, color=colour, label=label)
        drawn = True
    ax.set_xticks(range(len(ticks)), ticks)
    ax.grid(axis="x", visible=False)
    return drawn


def _finish_worth(ax: Axes, drawn: bool, title: str, *, legend: str, by_step: bool = True) -> bool:
    low, _ = ax.get_ylim()
    ax.set_ylim(max(-1.0, min(-0.05, low)), 1.02)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_title(title)
    _legend(ax, loc=legend)
    if by_step:
        _steps(ax)
    return drawn


def _by_position(ax: Axes, data: FigureData, name: str, title: str) -> bool:
    rows = [row for row in data.run.rl if isinstance(row.get(name), list)]
    if not rows:
        return False
    share = max(1, len(rows) // 4)
    for part, label, colour in ((rows[:share], "first", GREY), (rows[-share:], "last", BLUE)):
        curve = np.nanmean(np.array([row[name] for row in part], dtype=float), axis=0)
        ax.plot(
            np.arange(len(curve)) * 10 + 5, curve, "o-", markersize=4, color=colour, label=f"{label} {len(part)} steps"
        )
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_title(title)
    ax.set_xlabel("position in the response")
    ax.xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    _legend(ax, loc="best")
    return True


def advantages(ax: Axes, data: FigureData) -> bool:
    """Mean advantage by position in the response, early against late steps."""
    return _by_position(ax, data, "advantages/by_position", "Advantages by position")


def values(ax: Axes, data: FigureData) -> bool:
    """Mean value by position in the response, early against late steps."""
    return _by_position(ax, data, "values/by_position", "Values by position")


def staleness(ax: Axes, data: FigureData) -> bool:
    """Staleness of what was trained against its bound, and the share of mixed-version trajectories."""
    rows, bound = data.run.rl, data.run.config.rl.max_staleness
    steps, largest = series(rows, "staleness/max")
    if not steps:
        return False
    ax.step(steps, largest, where="mid", color=ORANGE, label="largest")
    _line(ax, rows, "staleness/mean", "mean", BLUE)
    ax.axhline(bound, color=RED, linestyle="--", linewidth=1.4, label=f"bound {bound}")
    mixed_steps, mixed = series(rows, "staleness/mixed_version_fraction")
    ax.fill_between(mixed_steps, 0, mixed, color=PURPLE, alpha=0.18, linewidth=0, label="share of mixed versions")
    ax.set_ylim(0, max(bound, max(largest), 1) * 1.25)
    ax.set_title("Staleness (policy versions)")
    _legend(ax, loc="upper right", ncols=2)
    _steps(ax)
    return True


def phases(ax: Axes, data: FigureData) -> bool:
    """Seconds of each learner step by phase."""
    rows = data.run.rl
    bottom = np.zeros(len(rows))
    steps = [row["step"] for row in rows]
    for name, label, colour in PHASES:
        heights = np.array([row.get(name) or 0.0 for row in rows], dtype=float)
        if heights.any():
            ax.bar(steps, heights, bottom=bottom, color=colour, width=0.85, label=label, linewidth=0)
            bottom = bottom + heights
    ax.set_title("Time per step, by phase")
    ax.set_ylabel("seconds")
    ax.set_ylim(0, max(bottom.max(initial=0.0) * 1.3, 1e-9))
    _legend(ax, loc="upper right", ncols=3, handlelength=1.0, columnspacing=1.0)
    _steps(ax)
    return bool(bottom.any())


def throughput(ax: Axes, data: FigureData) -> bool:
    """Tokens trained per second of wall time, waiting included."""
    drawn = _line(ax, data.run.rl, "tokens/per_second", "trained", ORANGE)
    ax.set_title("Throughput of the learner")
    ax.set_ylabel("tokens per second")
    ax.set_ylim(bottom=0)
    _steps(ax)
    return drawn


def evaluation(ax: Axes, data: FigureData) -> bool:
    """pass@1 on held-out problems with 95 % intervals, before and after."""
    names = [result.name for result in data.evals]
    for y, result in enumerate(data.evals):
        colour = GREEN if y else GREY
        ax.barh(y, result.pass_at_1, color=colour, alpha=0.85, height=0.55)
        ax.errorbar(
            result.pass_at_1,
            y,
            xerr=_bar(result),
            color=INK,
            capsize=4,
            linewidth=1.3,
        )
        inside = result.high > 0.85  # no room to the right
        place = result.low - 0.02 if inside else result.high + 0.02
        ax.text(place, y, f"{result.pass_at_1:.1%}", va="center", ha="right" if inside else "left", fontweight="bold",
                color="white" if inside else INK)  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(0, 1)
    ax.xaxis.set_major_formatter(PercentFormatter(1.0))
    ax.grid(axis="y", visible=False)
    ax.set_title("pass@1, held-out problems, 95 % interval")
    return bool(names)


Draw = Callable[[Axes, FigureData], bool]
FIGURES: dict[str, Draw] = {
    "accuracy": accuracy, "evaluation": evaluation, "length": length, "reward": reward,
    "reward_components": reward_components, "reward_by_turn": reward_by_turn, "dynamic_sampling": dynamic_sampling,
    "difficulty": difficulty,
    "value_pretraining": value_pretraining, "explained_variance": explained_variance,
    "explainable_by_position": explainable_by_position,
    "critic_worth": critic_worth, "critic_worth_by_position": critic_worth_by_position,
    "critic_worth_by_staleness": critic_worth_by_staleness, "values": values, "advantages": advantages,
    "turns": turns, "staleness": staleness, "phases": phases, "throughput": throughput,
}  # fmt: skip
SUMMARY = ("accuracy", "value_pretraining", "explained_variance", "length", "staleness", "phases")


def draw(name: str, data: FigureData, width: float = 6.4, height: float = 3.6) -> Figure | None:
    """One figure; None when the run has no data for it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure if FIGURES[name](figure.subplots(), data) else None


def draw_summary(data: FigureData, title: str, subtitle: str) -> Figure:
    """The six figures that tell the story, on one sheet."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(15, 8.2), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.03, rect=(0, 0, 1, 0.9))  # type: ignore[union-attr, call-arg]
        figure.text(0.012, 0.972, title, fontsize=18, fontweight="bold", va="top")
        figure.text(0.012, 0.927, subtitle, fontsize=11.5, color=MUTED, va="top")
        for ax, name in zip(figure.subplots(2, 3).flat, SUMMARY, strict=True):
            if not FIGURES[name](ax, data):
                ax.text(0.5, 0.5, "no data yet", transform=ax.transAxes, ha="center", color=MUTED)
        return figure

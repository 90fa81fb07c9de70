"""The paper's figures over a suite's runs. Each draws from a table that is written beside it as CSV."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from vcppo.deploy.report.figures import BLUE, GREEN, GREY, MUTED, ORANGE, PURPLE, RED, STYLE, TEAL
from vcppo.deploy.report.suite_data import ArmData, SuiteData
from vcppo.deploy.report.sweep_tables import timed_run
from vcppo.deploy.run.run_data import Row

Floats = Sequence[float] | NDArray[Any]
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, "#b7791f", "#be185d", "#475569", GREY)
MAIN = ("vc_ppo", "ppo", "grpo_group_mean", "without_decoupled_gae", "without_value_pretraining")
FIXED = {name: COLOURS[i] for i, name in enumerate(MAIN)}
DISTANCES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""As in vcppo.learner.critic_quality.signal_by_distance, which writes the lists."""
LAMBDAS = ("0.9", "0.95", "0.99", "1")


LINES = ("-", "--", ":", "-.")


class Look(NamedTuple):
    """Colour and line style of an arm, by Matplotlib's names."""

    colour: str
    line: str


@dataclass
class Drawing:
    """A figure in the making, and the rows it is made of."""

    data: SuiteData
    figure: Figure
    axes: Sequence[Axes]
    rows: list[Row] = field(default_factory=list)

    def curve(self, ax: Axes, arm: ArmData, metric: str, look: Look) -> None:
        """Mean over seeds, a band from the smallest to the largest."""
        found = arm.curve(metric)
        if found is None:
            return
        ax.plot(
            found.steps, found.mean, color=look.colour, linestyle=look.line, label=f"{arm.name} ({found.num_seeds})"
        )
        if found.num_seeds > 1:
            ax.fill_between(found.steps, found.low, found.high, color=look.colour, alpha=0.15, linewidth=0)
        for step, mean, low, high in zip(found.steps, found.mean, found.low, found.high, strict=True):
            self.rows.append(
                {"arm": arm.name, "metric": metric, "step": step, "mean": float(mean), "lowest_seed": float(low),
                 "highest_seed": float(high), "num_seeds": found.num_seeds})  # fmt: skip

    def points(self, ax: Axes, label: str, what: str, x: Floats, y: Floats, **style: Any) -> None:
        """A line of numbers that may be undefined; `what` they are stands in the table only."""
        kept = [(a, b) for a, b in zip(x, y, strict=True) if np.isfinite(b)]
        if kept:
            ax.plot(*zip(*kept, strict=True), label=label, **style)
        self.rows += [{"curve": label, "what": what, "x": float(a), "y": float(b)} for a, b in kept]


def looks(arms: Sequence[ArmData]) -> dict[str, Look]:
    """One for each arm of a figure: the main arms have colours of their own, the others take the rest, then dashed."""
    others = [arm.name for arm in arms if arm.name not in FIXED]
    left = COLOURS[len(FIXED) :]
    return {name: Look(colour, "-") for name, colour in FIXED.items()} | {
        name: Look(left[i % len(left)], LINES[i // len(left)]) for i, name in enumerate(others)
    }


def _chosen(data: SuiteData, names: Sequence[str]) -> list[ArmData]:
    return [arm for name in names if (arm := data.arm(name)) is not None]


def _starts(data: SuiteData) -> list[ArmData]:
    """PPO by what its critic starts from, and VC-PPO."""
    return [arm for arm in data.arms if arm.name == "vc_ppo" or arm.name == "without_value_pretraining"
            or arm.name.startswith("ppo")]  # fmt: skip


def collapse(drawing: Drawing) -> str:
    """Figure 1: accuracy and length of PPO by where its critic starts, beside VC-PPO."""
    return _curves(drawing, _starts(drawing.data), ("reward/accuracy", "length/mean"))


def accuracy(drawing: Drawing) -> str:
    """Figure 4: accuracy of the arms over steps, on the step's fresh training prompts."""
    data = drawing.data
    arms = _chosen(data, MAIN) if data.reference is None else list(data.arms)
    return _curves(drawing, arms, ("reward/accuracy", "explained_variance/token"))


def over_time(drawing: Drawing) -> str:
    """Accuracy over wall time, for a suite that compares its arms with a reference."""
    arms = list(drawing.data.arms) if drawing.data.reference is not None else []
    look = looks(arms)
    for ax, with_preparation in zip(drawing.axes, (False, True), strict=True):
        title = "Accuracy over seconds of RL" if not with_preparation else "With start and value pretraining"
        for arm in arms:
            runs = [timed_run(run, with_preparation=with_preparation) for run in arm.runs]
            steps = min((len(run.ended) for run in runs), default=0)
            seconds, rates = (np.mean([each[:steps] for each in of], axis=0) if steps else ()
                              for of in ([run.ended for run in runs], [run.accuracy for run in runs]))  # fmt: skip
            drawing.points(ax, f"{arm.name} ({len(runs)})", title, seconds, rates, color=look[arm.name].colour,
                           linestyle=look[arm.name].line)  # fmt: skip
        ax.set_title(title)
        ax.set_xlabel("seconds")
        ax.set_ylim(0, 1.02)
        ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    if arms:
        _legend_below(drawing)
    return "Number of seeds in brackets. Means over seeds of a step's seconds and of its accuracy." if arms else ""


def lambda_actor(drawing: Drawing) -> str:
    """Table 4 as curves: lambda_actor at lambda_critic = 1, and length-adaptive."""
    names = ("lambda_actor_0.90", "vc_ppo", "lambda_actor_0.99", "lambda_actor_1.00", "length_adaptive")
    arms = _chosen(drawing.data, names)
    return _curves(drawing, arms, ("reward/accuracy", "length/mean")) if len(arms) > 1 else ""


TITLES = {"reward/accuracy": "Accuracy", "length/mean": "Response length, tokens",
          "explained_variance/token": "Explained variance of the critic"}  # fmt: skip


def _curves(drawing: Drawing, arms: Sequence[ArmData], metrics: Sequence[str]) -> str:
    if not arms:
        return ""
    look = looks(arms)
    for ax, metric in zip(drawing.axes, metrics, strict=True):
        for arm in arms:
            drawing.curve(ax, arm, metric, look[arm.name])
        ax.set_title(TITLES[metric])
        ax.set_xlabel("learner step")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        if metric == "reward/accuracy":
            ax.set_ylim(0, 1.02)
            ax.yaxis.set_major_formatter(PercentFormatter(1.0))
        elif metric == "length/mean":
            ax.set_ylim(bottom=0)
        else:
            ax.set_ylim(max(-1.0, ax.get_ylim()[0]), 1.02)
            ax.axhline(0, color=MUTED, linewidth=0.8)
    _legend_below(drawing)
    return "Number of seeds in brackets. Lines are means over seeds, bands reach from the lowest seed to the highest."


def _legend_below(drawing: Drawing) -> None:
    """One for both axes: with many arms it would cover the curves."""
    handles, labels = drawing.axes[0].get_legend_handles_labels()
    drawing.figure.legend(handles, labels, loc="outside lower center", ncols=4)


def by_position(drawing: Drawing) -> str:
    """Figures 2 and 5: values and raw advantages by position at the first step, by where the critic starts."""
    arms = [arm for arm in _starts(drawing.data) if arm.list_at("values/by_position", 1) is not None]
    if not arms:
        return ""
    place, look = np.arange(10) * 10 + 5, looks(arms)
    for ax, metric, title in zip(
        drawing.axes, ("values/by_position", "advantages/by_position"),
        ("Values at step 1", "Advantages at step 1, before whitening"), strict=True,
    ):  # fmt: skip
        for arm in arms:
            found = arm.list_at(metric, 1)
            assert found is not None
            colour, line = look[arm.name]
            drawing.points(ax, arm.name, metric, place, found, color=colour, linestyle=line, marker="o", markersize=3)
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.set_title(title)
        ax.set_xlabel("position in the response")
        ax.xaxis.set_major_formatter(PercentFormatter(100, decimals=0))
    _legend_below(drawing)
    return (
        "Mean over seeds, before any RL update. Positive advantages for early tokens whatever they say, falling with"
        " position, are the bias of the paper's figure 2."
    )


def signal(drawing: Drawing) -> str:
    """Figure 3: how much of the outcome reaches a token, by its distance to the end, for several lambda."""
    shown = [arm for arm in _chosen(drawing.data, ("ppo", "vc_ppo")) if arm.list_at("reward_signal/1", 1) is not None]
    if not shown:
        return ""
    middle = [np.sqrt(max(a, 1) * b) for a, b in pairwise(DISTANCES)]
    for ax in drawing.axes[len(shown) :]:
        ax.set_visible(False)
    for ax, arm in zip(drawing.axes, shown, strict=False):
        longest = 0
        for lam, colour in zip(LAMBDAS, (RED, ORANGE, TEAL, BLUE), strict=True):
            found = arm.list_at(f"reward_signal/{lam}", 1)
            if found is None:
                continue
            longest = max(longest, int(np.flatnonzero(np.isfinite(found)).max(initial=0)))
            drawing.points(
                ax,
                f"λ = {lam}",
                f"{arm.name}, by tokens to the end",
                middle,
                found,
                color=colour,
                marker="o",
                markersize=3,
            )
            theory = [np.mean(float(lam) ** np.arange(a, b)) for a, b in pairwise(DISTANCES)]
            ax.plot(middle[: longest + 1], theory[: longest + 1], color=colour, linestyle="--", linewidth=1)
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator([max(d, 4) for d in DISTANCES[: longest + 2]]))
        ax.xaxis.set_major_formatter("{x:.0f}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.axhline(0, color=MUTED, linewidth=0.8)
        ax.set_title(f"Outcome in value targets, {arm.name}")
        ax.set_xlabel("tokens to the end")
        ax.legend(loc="lower left")
    for ax in drawing.axes[len(shown) :]:
        ax.set_visible(False)
    return (
        "Value target of correct responses less that of wrong ones at step 1, over the difference of their rewards;"
        " dashed: λ^(T−t). A critic that has learnt the outcome adds what it knows; one that has not leaves λ^(T−t)."
    )


def pretraining(drawing: Drawing) -> str:
    """Figure 6: held-out loss and explained variance of value pretraining."""
    seen: set[int] = set()
    for arm in drawing.data.arms:
        for run in arm.runs:
            history = (run.decision or {}).get("history") or []
            if run.seed in seen or not history or arm.name.startswith("value_pretraining_0"):
                continue
            seen.add(run.seed)
            colour = COLOURS[len(seen) - 1]
            steps = [row["step"] for row in history]
            for ax, key in zip(drawing.axes, ("held_out_loss", "explained_variance"), strict=True):
                numbers = [np.nan if row[key] is None else row[key] for row in history]
                drawing.points(ax, f"seed {run.seed}", key, steps, numbers, color=colour, marker="o", markersize=3)
    if not seen:
        return ""
    for ax, title in zip(drawing.axes, ("Held-out value loss", "Held-out explained variance"), strict=True):
        ax.set_title(title)
        ax.set_xlabel("value-pretraining step")
    drawing.axes[1].axhline(0, color=MUTED, linewidth=0.8)
    drawing.axes[0].legend(loc="best")
    return (
        "One critic a seed; arms of a seed share it. The paper's two stages: values move into range, then they learn."
    )


Draw = Callable[[Drawing], str]
FIGURES: dict[str, tuple[str, Draw]] = {
    "figure_1_collapse": ("Figure 1: does PPO collapse?", collapse),
    "figure_2_5_by_position": ("Figures 2 and 5: what critics say before and after value pretraining", by_position),
    "figure_3_reward_signal": ("Figure 3: how far the outcome is heard", signal),
    "figure_4_accuracy": ("Figure 4: the arms over steps", accuracy),
    "accuracy_over_time": ("The arms over wall time", over_time),
    "figure_6_value_pretraining": ("Figure 6: value pretraining", pretraining),
    "table_4_lambda_actor": ("λ_actor over steps", lambda_actor),
}


def draw(name: str, data: SuiteData) -> tuple[Figure, str, list[Row]] | None:
    """(figure, caption, its rows); None when the runs have no data for it."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11.5, 4.3), layout="constrained")
        drawing = Drawing(data, figure, list(figure.subplots(1, 2).flat))
        caption = FIGURES[name][1](drawing)
        return (figure, caption, drawing.rows) if caption and drawing.rows else None

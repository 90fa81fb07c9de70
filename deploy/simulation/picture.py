"""The picture of a simulation: throughput, who waits, staleness, over the number of generators."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from vcppo.common.records.simulated import Simulated
from vcppo.deploy.report.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, STYLE

_LEARNER = (
    ("learner_training", "training", ORANGE), ("learner_sending", "sending weights", RED),
    ("learner_other", "checkpoints, records", PURPLE), ("learner_waiting", "waiting for the batch", GREY),
)  # fmt: skip
_GENERATORS = (
    ("generators_busy", "sampling", GREEN), ("generators_paused", "paused for weights", RED),
    ("generators_waiting", "waiting for prompts", GREY),
)  # fmt: skip


def draw(results: Mapping[int, Simulated], title: str) -> bytes:
    """A PNG."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 6.4), layout="constrained")
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
        axes = figure.subplots(2, 2)
        numbers, all_of_them = list(results), list(results.values())
        _throughput(axes[0, 0], numbers, all_of_them)
        _staleness(axes[0, 1], numbers, all_of_them)
        _shares(axes[1, 0], numbers, all_of_them, _LEARNER, "Learner's time")
        _shares(axes[1, 1], numbers, all_of_them, _GENERATORS, "Generators' slots")
        for ax in axes.flat:
            ax.set_xscale("log")
            ax.set_xlabel("generators")
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def _throughput(ax: Axes, numbers: Sequence[int], results: Sequence[Simulated]) -> None:
    ax.plot(numbers, [result.tokens_per_second for result in results], "o-", color=BLUE, markersize=3)
    ax.set_yscale("log")
    ax.set_title("Trained tokens a second")


def _staleness(ax: Axes, numbers: Sequence[int], results: Sequence[Simulated]) -> None:
    ax.plot(numbers, [result.mean_staleness for result in results], "o-", color=BLUE, markersize=3, label="mean")
    ax.set_ylim(0, max(1, len(results[0].staleness) - 1) * 1.05)
    ax.set_title("Staleness, versions; Redis' thread")
    ax.plot(numbers, [result.store_busy for result in results], "--", color=RED, label="Redis busy, share of a core")
    ax.legend(loc="center right")


def _shares(
    ax: Axes,
    numbers: Sequence[int],
    results: Sequence[Simulated],
    parts: Sequence[tuple[str, str, str]],
    title: str,
) -> None:
    ax.stackplot(
        numbers, *([getattr(result, name) for result in results] for name, _, _ in parts),
        labels=[label for _, label, _ in parts], colors=[colour for _, _, colour in parts], alpha=0.85,
    )  # fmt: skip
    ax.set_ylim(0, 1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_title(title)
    ax.legend(loc="lower left", frameon=True)

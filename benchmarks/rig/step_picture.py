"""Where the time of one learner step goes: a bar a model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.rig.figures import seconds_text
from vcppo.deploy.report.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, STYLE, TEAL

PHASES = {
    "values": TEAL,
    "old log-probs": BLUE,
    "actor forward": ORANGE,
    "actor backward": "#c2570c",
    "critic forward": PURPLE,
    "critic backward": "#6d28d9",
    "optimizers": GREEN,
    "rest": GREY,
}


def draw(steps: Mapping[str, tuple[Mapping[str, float], float]], path: Path) -> None:
    """Write a PNG.

    Args:
        steps: by model: seconds by phase, and the seconds its model FLOPs take at the speed of a matrix product.
    """
    with mpl.rc_context(STYLE):
        figure, ax = plt.subplots(figsize=(10, 0.9 + 1.0 * len(steps)), layout="constrained")
        for row, (phases, ideal) in enumerate(steps.values()):
            _bar(ax, row, phases, ideal)
        labels = [f"{name}\n{seconds_text(sum(phases.values()))}" for name, (phases, _) in steps.items()]
        ax.set_yticks(range(len(steps)), labels)
        ax.set_xlim(0, 100)
        ax.set_ylim(len(steps) - 0.55, -0.7)
        ax.set_xlabel("% of the step; the red line: its model FLOPs at the speed of this machine's matrix product")
        ax.grid(axis="y", visible=False)
        handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in PHASES.values()]
        figure.legend(handles, list(PHASES), loc="outside upper center", ncols=len(PHASES))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _bar(ax: plt.Axes, row: int, phases: Mapping[str, float], ideal: float) -> None:
    total, left = sum(phases.values()), 0.0
    for name, seconds in phases.items():
        share = 100.0 * seconds / total
        ax.barh(row, share, left=left, height=0.6, color=PHASES[name])
        if share >= 4.0:
            ax.text(left + share / 2, row, f"{share:.0f}", ha="center", va="center", color="white")
        left += share
    ax.plot([100.0 * ideal / total] * 2, [row - 0.38, row + 0.38], color=RED, linewidth=2.5)
    ax.text(100.0 * ideal / total, row - 0.42, f"{100.0 * ideal / total:.0f} %", ha="center", va="bottom", color=INK)

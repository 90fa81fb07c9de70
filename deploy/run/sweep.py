"""A sweep: every arm of a suite with the same values of one setting, then its best value with fresh seeds. Pure.

A value is chosen by the runs' accuracy in training, late in the run, with the suite's own seeds. What is reported is
the held-out accuracy of runs with other seeds. So the choice can't flatter what is reported: neither the figure nor
the runs are those it was chosen by.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

CHOICES_FILE = "choices.json"
"""In a suite's folder: the value that each arm is reported with."""

SCORE = "reward/accuracy"
"""What a value is chosen by: accuracy on the step's fresh training prompts. No held-out problem has a part in it."""

LATE_SHARE = 0.25
"""Part of a run's steps, from its end, that its score is the mean of: one step of 128 responses says little."""


class Sweep(BaseModel):
    """``sweep`` of a suite's file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: str = Field(pattern=r"^[a-z_]+(\.[a-z_]+)+$")
    """The setting, such as ``rl.actor_learning_rate``."""

    values: tuple[float, ...] = Field(min_length=2)
    """Each arm runs with each of them, with the suite's ``seeds``."""

    best_seeds: tuple[int, ...] = Field(min_length=1)
    """Seeds of the runs with an arm's best value; none of them is among the suite's ``seeds``."""


def variant_name(arm: str, value: float) -> str:
    """Name of an arm with one value of the sweep: ``vc_ppo-5e-05``."""
    return f"{arm}-{value:g}"


def late_mean(values: Sequence[float]) -> float | None:
    """Mean of the last quarter of a run's steps, of one at least; None of nothing."""
    kept = values[-max(1, round(len(values) * LATE_SHARE)) :]
    return math.fsum(kept) / len(kept) if kept else None


def best_value(scores: Mapping[float, Sequence[float | None]]) -> float | None:
    """The value of the highest mean score; of equals the smallest.

    Args:
        scores: by value, one a seed. None: the run is not finished, so nothing can be chosen yet. ``-inf``: it failed,
            which is worse than any score.

    Returns:
        None: too early, or all values have failed.
    """
    if not scores or any(not each or any(score is None for score in each) for each in scores.values()):
        return None
    means = {
        value: math.fsum(score for score in each if score is not None) / len(each)
        for value, each in scores.items()
        if -math.inf not in each
    }
    return min(means, key=lambda value: (-means[value], value), default=None)


def hours_left(minutes: Sequence[float], num_left: int, guess: float | None) -> float | None:
    """How long `num_left` runs take: by the mean of the finished ones' `minutes`, else by `guess`; None: not known."""
    each = math.fsum(minutes) / len(minutes) if minutes else guess
    return None if each is None else num_left * each / 60

"""Arms at equal wall time, and differences that are paired by seed. Pure maths over step metrics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]

WINDOW = 3
"""Steps whose mean accuracy is the accuracy at a time: one step of 128 responses says little."""
CONFIDENCE = 0.95


class Timed(NamedTuple):
    """A run over wall time.

    Attributes:
        ended: ``[S]`` seconds at which each learner step had ended, since RL began or since the run was started.
        accuracy: ``[S]`` on the step's fresh training prompts: the policy before that step's update.
    """

    ended: Float64Array
    accuracy: Float64Array


def timed(seconds: Sequence[float], accuracy: Sequence[float], before: float = 0.0) -> Timed:
    """Steps one after the other. An interruption between two of them costs nothing.

    Args:
        seconds: ``[S]`` how long each step took; `accuracy` ``[S]``.
        before: seconds before the first step that count, too.

    Raises:
        ValueError: they are not of one length.
    """
    if len(seconds) != len(accuracy):
        raise ValueError(f"{len(seconds)} durations of {len(accuracy)} steps")
    return Timed(before + np.cumsum(np.asarray(seconds, np.float64)), np.asarray(accuracy, np.float64))


def common_time(runs: Sequence[Timed]) -> float | None:
    """The time at which the first of them had ended: until then there is something of each. None of nothing."""
    return min((float(run.ended[-1]) for run in runs if len(run.ended)), default=None)


def accuracy_at(run: Timed, seconds: float) -> float | None:
    """Mean accuracy of the last steps that had ended by then; None: not even one had."""
    done = int(np.searchsorted(run.ended, seconds * (1 + 1e-9), side="right"))  # the run that ended then has it all
    return float(run.accuracy[max(0, done - WINDOW) : done].mean()) if done else None


def paired_interval(differences: Sequence[float]) -> tuple[float, float] | None:
    """95 % of the mean of differences by seed (Student's t, n − 1 degrees of freedom); None: fewer than two seeds."""
    values = np.asarray(differences, np.float64)
    if len(values) < 2:
        return None
    from scipy.stats import t

    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half

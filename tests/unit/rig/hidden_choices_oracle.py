"""What can be known about the outcome of a `hidden_choices` response at each decision: exact, in float64.

A policy is its skill: the probability that it takes the right option, by kind. Its choices are independent given the
prompt, so the number of right ones has a Poisson binomial distribution, and the state after t decisions is the number
of right ones so far. The value of each state, and the share of the outcome's variance that it explains, follow by
summing over all of them: no sampling, no fitting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

Float64Array = NDArray[np.float64]


def right_counts(skills: Sequence[float]) -> Float64Array:
    """``[n+1]`` P(c of n independent choices are right), c = 0 … n: the Poisson binomial, by convolution."""
    counts = np.ones(1)
    for skill in skills:
        counts = np.convolve(counts, [1 - skill, skill])
    return counts


def win_probabilities(skills: Sequence[float], mark: int) -> Float64Array:
    """``[n+1, n+1]`` P(correct | c right among the first t), by t and c; c > t can't be, and is 0 there."""
    n = len(skills)
    table = np.zeros((n + 1, n + 1))
    for t in range(n + 1):
        left = right_counts(skills[t:])
        for c in range(t + 1):
            table[t, c] = left[max(0, mark - c) :].sum()
    return table


def accuracy(problems: Sequence[tuple[Sequence[float], int]]) -> float:
    """Share of correct responses over `problems`, each the skills of its decisions and its mark."""
    return float(np.mean([right_counts(skills)[mark:].sum() for skills, mark in problems]))


def explainable_variance(problems: Sequence[tuple[Sequence[float], int]]) -> Float64Array:
    """``[n+1]`` Var(E[R | state after t decisions]) / Var(R): what no critic can be above at that position.

    The state holds the prompt. At t = 0 it is all there is; at t = n the outcome is known. Rewards of ±1 or of 0 and 1
    give the same, as it is a ratio.
    """
    mean = accuracy(problems)
    n = len(problems[0][0])
    squares = np.zeros(n + 1)
    for skills, mark in problems:
        wins = win_probabilities(skills, mark)
        for t in range(n + 1):
            squares[t] += (right_counts(skills[:t]) * wins[t, : t + 1] ** 2).sum() / len(problems)
    explained: Float64Array = (squares - mean**2) / (mean * (1 - mean))
    return explained


def skills_of(kinds: str, skill: Mapping[str, float]) -> list[float]:
    """The skill of each decision of a prompt."""
    return [skill[kind] for kind in kinds]

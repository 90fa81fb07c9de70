"""How sure a figure is: a bootstrap interval over whole prompts, of anything made from sums a prompt. Pure.

Responses to one prompt are alike, and so are the tokens of one response: what is drawn again is the prompt. A figure
that is made from a few sums of each prompt costs one product a resample.

Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13 (percentile interval), with clusters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

Sums = NDArray[np.float64]
"""``[G, C]``: of each prompt C numbers, which are added up over prompts."""

LEVEL = 0.9
NUM_RESAMPLES = 2000


class Interval(NamedTuple):
    """The middle `LEVEL` of the figure over resampled prompts."""

    low: float
    high: float


class Figure(NamedTuple):
    """A measured figure; None where it is undefined. The interval is None where there is too little to say anything."""

    value: float | None
    interval: Interval | None


def over_prompts(
    sums: Float64[Sums, "G C"],
    figure: Callable[[Float64[Sums, "*rows C"]], Float64[NDArray[np.float64], "*rows"]],
    seed: int,
) -> Figure:
    """The figure over all prompts, and its interval, from their ``[G, C]`` sums.

    The interval is None when the figure is undefined in a quarter of the resamples.

    Args:
        figure: of summed rows ``[..., C]``; NaN where it is undefined.
    """
    value = float(figure(sums.sum(axis=0))) if len(sums) else float("nan")
    if not np.isfinite(value):
        return Figure(None, None)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(len(sums), np.full(len(sums), 1.0 / len(sums)), size=NUM_RESAMPLES)
    found = figure(drawn.astype(np.float64) @ sums)
    defined = found[np.isfinite(found)]
    if len(defined) < 0.75 * NUM_RESAMPLES:
        return Figure(value, None)
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Figure(value, Interval(float(low), float(high)))

"""What of the outcome's variance a state tells: no critic can explain more. From Monte-Carlo continuations. Pure.

At position t the policy continues each of N prefixes K times. With R the return and s_t the prefix,

    Var(R) = Var(E[R | s_t]) + E[Var(R | s_t)]          explainable(t) = Var(E[R | s_t]) / Var(R)

E[R | s_t] is the value that a perfect critic gives. Its variance is estimated without bias by the one-way
random-effects analysis of variance: with m_i and w_i the mean and the variance (over K - 1) of prefix i's returns,

    within = mean(w_i)          between = var(m_i) - mean(w_i / K)          explainable = between / (between + within)

The variance of the means alone would be too large by within / K: chance would look like knowledge. A critic V, on the
same prefixes, has the error e_i = m_i - V(s_i), whose variance between prefixes is estimated in the same way. So

    explained = (between - between_e) / (between + within)      explained / explainable = 1 - between_e / between

where explained is 1 - Var(R - V) / Var(R). Estimates are not cut off at 0 and 1: that would bias them.

Sources: Searle, Casella and McCulloch, Variance Components (1992), chapter 3 (the estimator). What a group's mean
explains follows from its variance (`group_mean_explains`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from numpy.typing import NDArray

from vcppo.common.evaluation.over_prompts import Figure, Sums, over_prompts

Float64Array = NDArray[np.float64]
# Rounding leaves crumbs of variance in constants; below this, relative to the returns' size, it is no variance.
_CRUMBS = 1e-12


class Explainable(NamedTuple):
    """Figures at one position.

    Attributes:
        explainable: share of the return's variance that a perfect critic would explain.
        explained: what the critic at hand explains; None without a critic.
        reached: explained / explainable; None without a critic, or where it is not certain that anything is
            explainable (the lower end of its interval is not above 0).
        mean: of the returns.
        variance: of the returns, between prefixes and within them.
    """

    explainable: Figure
    explained: Figure | None
    reached: Figure | None
    mean: float
    variance: float


def explainable_variance(
    returns: Float64[Float64Array, "N K"], values: Float64[Float64Array, "N"] | None, seed: int
) -> Explainable:
    """Measure one position; each prefix is of a prompt of its own.

    Args:
        returns: ``[N, K]`` of prefix i's K continuations; N >= 1, K >= 2.
        values: ``[N]`` the critic's V of each prefix; None without a critic.
        seed: of the bootstrap.

    Raises:
        ValueError: no prefix, or fewer than two continuations of each.
    """
    if returns.ndim != 2 or len(returns) < 1 or returns.shape[1] < 2:
        raise ValueError(f"returns of shape {returns.shape}: at least one prefix and two continuations are needed")
    sums = prefix_sums(returns, values)
    explainable = over_prompts(sums, _explainable, seed)
    between, within, _ = _components(sums.sum(axis=0))
    variance = float(between + within) if len(returns) > 1 else float(within)
    if values is None:
        return Explainable(explainable, None, None, float(returns.mean()), variance)
    certain = explainable.interval is not None and explainable.interval.low > 0
    reached = over_prompts(sums, _reached, seed) if certain else None
    return Explainable(explainable, over_prompts(sums, _explained, seed), reached, float(returns.mean()), variance)


def prefix_sums(
    returns: Float64[Float64Array, "N K"], values: Float64[Float64Array, "N"] | None
) -> Float64[Sums, "N 7"]:
    """``[N, 7]``: of each prefix 1, m, m², w, w / K, e, e²; e is m without a critic.

    A common constant is taken off m and e: no variance changes, and differences of sums keep their digits.
    """
    means, within = returns.mean(axis=1), returns.var(axis=1, ddof=1)
    errors = means if values is None else means - values
    m, e = means - means.mean(), errors - errors.mean()
    return np.stack([np.ones_like(m), m, m * m, within, within / returns.shape[1], e, e * e], axis=1)


def group_mean_explains(explainable_by_prompt: float, group_size: int) -> float | None:
    """What the mean of a prompt's other responses explains of a response's return; None where there are no others.

    That mean has the prompt's expectation and, of g - 1 responses, the variance within / (g - 1). So it leaves
    within * (1 + 1 / (g - 1)) unexplained.

    Args:
        explainable_by_prompt: explainable variance at position 0.
        group_size: g, responses to a prompt.
    """
    if group_size < 2:
        return None
    return explainable_by_prompt - (1.0 - explainable_by_prompt) / (group_size - 1)


def _components(sums: Float64[Sums, "*rows 7"]) -> tuple[Float64Array, Float64Array, Float64Array]:
    """``[...]`` each: between, within and between_e of summed rows ``[..., 7]``; NaN of fewer than two prefixes."""
    n, m, mm, w, w_of_mean, e, ee = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = w_of_mean / n
        between = (mm - m * m / n) / (n - 1) - chance
        between_e = (ee - e * e / n) / (n - 1) - chance
        return np.asarray(between), np.asarray(w / n), np.asarray(between_e)


def _share(
    part: Float64[Float64Array, "*rows"], whole: Float64[Float64Array, "*rows"], sums: Float64[Sums, "*rows 7"]
) -> Float64[Float64Array, "*rows"]:
    """part / whole; NaN where whole is no variance."""
    n, _, mm, w, *_ = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = part / whole
        size = np.maximum(1.0, (mm + w) / n)
    return np.where(whole > _CRUMBS * size, found, np.nan)


def _explainable(sums: Float64[Sums, "*rows 7"]) -> Float64[Float64Array, "*rows"]:
    between, within, _ = _components(sums)
    return _share(between, np.asarray(between + within), sums)


def _explained(sums: Float64[Sums, "*rows 7"]) -> Float64[Float64Array, "*rows"]:
    between, within, between_e = _components(sums)
    return _share(np.asarray(between - between_e), np.asarray(between + within), sums)


def _reached(sums: Float64[Sums, "*rows 7"]) -> Float64[Float64Array, "*rows"]:
    between, _, between_e = _components(sums)
    return _share(np.asarray(between - between_e), between, sums)

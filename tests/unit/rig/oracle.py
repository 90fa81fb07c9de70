"""The paper's formulas written down literally: Python floats, sums where the paper has sums, no recursion, no tricks.

Slow on purpose, and sharing no code with the learner: it is what the learner is checked against. Equation numbers are
the paper's; see the restatement in its README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Floats = Sequence[float]


def td_errors(rewards: Floats, values: Floats, final_value: float, gamma: float = 1.0) -> list[float]:
    """delta_t = r_t + gamma V(s_{t+1}) - V(s_t)."""
    following = [*values, final_value][1:]
    return [r + gamma * after - before for r, before, after in zip(rewards, values, following, strict=True)]


def gae(rewards: Floats, values: Floats, final_value: float, lam: float, gamma: float = 1.0) -> list[float]:
    """Eq. 4: A_t = sum_{l=0}^{T-t-1} (gamma lambda)^l delta_{t+l}."""
    return [gae_at(rewards, values, final_value, t, lam, gamma) for t in range(len(rewards))]


def gae_at(rewards: Floats, values: Floats, final_value: float, t: int, lam: float, gamma: float = 1.0) -> float:
    """A_t of eq. 4 alone: linear in T, where all of them are quadratic."""
    deltas = td_errors(rewards[t:], values[t:], final_value, gamma)
    return math.fsum((gamma * lam) ** steps * delta for steps, delta in enumerate(deltas))


def value_targets(rewards: Floats, values: Floats, final_value: float, lam: float, gamma: float = 1.0) -> list[float]:
    """Eq. 5: R_t = V(s_t) + sum_l (gamma lambda)^l delta_{t+l}, with lambda_critic."""
    return [v + a for v, a in zip(values, gae(rewards, values, final_value, lam, gamma), strict=True)]


def n_step_return(rewards: Floats, values: Floats, final_value: float, t: int, n: int) -> float:
    """G_{t:t+n} = r_t + ... + r_{t+n-1} + V(s_{t+n}), gamma = 1."""
    states = [*values, final_value]
    return math.fsum(rewards[t : t + n]) + states[t + n]


def eq8_mixture(rewards: Floats, values: Floats, final_value: float, t: int, lam: float) -> float:
    """Eq. 8: (1 - lambda) sum_{l=1}^{T-t-1} lambda^{l-1} G_{t:t+l} + lambda^{T-t-1} G_{t:T} - V(s_t)."""
    remaining = len(rewards) - t
    mixed = math.fsum(lam ** (n - 1) * n_step_return(rewards, values, final_value, t, n) for n in range(1, remaining))
    last = lam ** (remaining - 1) * n_step_return(rewards, values, final_value, t, remaining)
    return (1.0 - lam) * mixed + last - values[t]


def clipped_objective(ratio: float, advantage: float, low: float, high: float) -> float:
    """min(rho A, clip(rho, 1 - low, 1 + high) A), the summand of L_clip."""
    return min(ratio * advantage, min(max(ratio, 1.0 - low), 1.0 + high) * advantage)


def variance(xs: Floats, weights: Floats) -> float:
    total = math.fsum(weights)
    mean = math.fsum(w * x for w, x in zip(weights, xs, strict=True)) / total
    return math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, xs, strict=True)) / total


def explained_variance(values: Floats, returns: Floats, weights: Floats) -> float:
    """1 - Var(R - V) / Var(R)."""
    errors = [r - v for r, v in zip(returns, values, strict=True)]
    return 1.0 - variance(errors, weights) / variance(returns, weights)

"""The paper's formulas written down literally: Python floats, sums where the paper has sums, no recursion, no tricks.

Slow on purpose, and sharing no code with the learner: it is what the learner is checked against. Equation numbers are
the paper's; see the restatement in its README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

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


def turn_gae(
    rewards: Sequence[Floats], values: Sequence[Floats], final_value: float, lam: float
) -> tuple[list[list[float]], list[list[float]]]:
    """Advantages and value targets with a turn as one step: rewards and values of each turn's tokens in turn.

    A_k = sum_l lambda^l delta_{k+l}, delta_k = (sum of turn k's rewards) + V_{k+1} - V_k, V_k before its first token.
    """
    sums, first = [math.fsum(turn) for turn in rewards], [turn[0] for turn in values]
    advantages = gae(sums, first, final_value, lam)
    targets = [v + a for v, a in zip(first, advantages, strict=True)]
    left = [[g - math.fsum(turn[:t]) for t in range(len(turn))] for g, turn in zip(targets, rewards, strict=True)]
    return [[a] * len(turn) for a, turn in zip(advantages, rewards, strict=True)], left


def kl_estimate(log_prob: float, reference: float, estimator: str) -> float:
    """k1, k2, k3 of d = log pi_reference - log pi."""
    d = reference - log_prob
    return {"k1": -d, "k2": d * d / 2.0, "k3": math.exp(d) - d - 1.0}[estimator]


def reinforce_plus_plus(outcome: float, kl: Floats, beta: float) -> list[float]:
    """arXiv 2501.03262, eq. 8: A_t = outcome - beta sum_{i >= t} KL(i), before normalisation."""
    return [outcome - beta * math.fsum(kl[t:]) for t in range(len(kl))]


def normalised(rows: Sequence[Floats]) -> list[list[float]]:
    """The same, eq. 10: over all tokens of the batch, (A - mean) / std."""
    flat = [a for row in rows for a in row]
    mean = math.fsum(flat) / len(flat)
    std = math.sqrt(math.fsum((a - mean) ** 2 for a in flat) / len(flat))
    return [[(a - mean) / std for a in row] for row in rows]


def entropy_weights(entropies: Floats, target: float, step: float, limit: float) -> list[float]:
    """Skywork-OR1's coefficient in force in each step but the first, by the entropy of the step before it."""
    coefficient, found = 0.0, []
    for entropy in entropies:
        if entropy < target:
            coefficient = min(coefficient + step, limit)
        elif entropy > target:
            coefficient = max(coefficient - step, 0.0)
        found.append(coefficient if entropy <= target else 0.0)
    return found


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


def explainable(returns: Sequence[Floats]) -> float:
    """One-way random-effects analysis of variance of a table of prefixes and continuations, by its mean squares.

    MSW = sum_ik (R_ik - R_i.)^2 / (N (K - 1)), MSB = K sum_i (R_i. - R..)^2 / (N - 1),
    between = (MSB - MSW) / K, within = MSW (Searle, Casella and McCulloch, Variance Components, 1992, section 3.5).
    """
    n, k = len(returns), len(returns[0])
    means = [math.fsum(row) / k for row in returns]
    grand = math.fsum(means) / n
    squares = math.fsum((r - mean) ** 2 for row, mean in zip(returns, means, strict=True) for r in row)
    within = squares / (n * (k - 1))
    between = (k * math.fsum((mean - grand) ** 2 for mean in means) / (n - 1) - within) / k
    return between / (between + within)


def two_hot(value: float, centres: Floats) -> list[float]:
    """Probability of each centre: all on the two around `value`, each the more the nearer, the mean being `value`."""
    value = min(max(value, centres[0]), centres[-1])
    right = next(i for i, centre in enumerate(centres) if i > 0 and value <= centre)
    left = right - 1
    share = (value - centres[left]) / (centres[right] - centres[left])
    return [1 - share if i == left else share if i == right else 0.0 for i in range(len(centres))]


def hl_gauss(value: float, edges: Floats, sigma: float) -> list[float]:
    """arXiv 2403.03950, eq. 4: a Gaussian's mass in each bin, over its mass in all of them."""

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf((x - value) / (sigma * math.sqrt(2))))

    inside = below(edges[-1]) - below(edges[0])
    return [(below(high) - below(low)) / inside for low, high in pairwise(edges)]


def softmax(logits: Floats) -> list[float]:
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [math.exp(x - top) / total for x in logits]


def cross_entropy(probabilities: Floats, logits: Floats) -> float:
    return -math.fsum(p * math.log(q) for p, q in zip(probabilities, softmax(logits), strict=True) if p)

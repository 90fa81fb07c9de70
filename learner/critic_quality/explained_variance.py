"""How well the critic predicts, against Monte-Carlo returns: 1 - Var(R - V) / Var(R), seen from five sides.

Against Monte-Carlo returns, never against lambda-returns: these contain V and flatter it. None where it is
undefined (the returns don't vary), because 0 or 1 would be read as a result. Beside the prompt's mean:
`vcppo.learner.critic_quality.vs_prompt_mean`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
NUM_DECILES = 10
# Rounding leaves crumbs of variance in constants; below this, relative to the returns' size, it is no variance.
CRUMBS = 1e-12


@dataclass(frozen=True, slots=True)
class ExplainedVariance:
    """1 is perfect, 0 is as good as a constant, negative is worse than one; None is undefined.

    Attributes:
        token: every action counts once (long responses dominate).
        sequence: every response counts once, its actions sharing its weight.
        within_prompt: of what differs between responses to one prompt: returns and values less their means over the
            prompt's group. A critic that only knows how hard a prompt is scores 0 here.
        by_position: `token` for the actions in each tenth of their response.
    """

    token: float | None
    sequence: float | None
    within_prompt: float | None
    by_position: list[float | None]


def explained_variance(
    values: Float[FloatArray, "A"],
    returns: Float[FloatArray, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    group_ids: Sequence[str],
) -> ExplainedVariance:
    """Measure it over a batch.

    Args:
        values: ``[A]`` V of the state before each action.
        returns: ``[A]`` Monte-Carlo returns (`vcppo.learner.algorithm.gae.monte_carlo_returns`).
        action_cu_seqlens: ``[S+1]``.
        group_ids: ``[S]`` the prompt each response answers.
    """
    v, r = np.asarray(values, np.float64), np.asarray(returns, np.float64)
    lengths = np.diff(action_cu_seqlens)
    token_weight = np.ones(len(r))
    sequence_weight = np.repeat(1.0 / np.maximum(lengths, 1), lengths)
    _, group_of_sequence = np.unique(np.asarray(group_ids, dtype=str), return_inverse=True)
    group = np.repeat(group_of_sequence, lengths)
    decile = position_deciles(action_cu_seqlens)
    return ExplainedVariance(
        token=explained(v, r, token_weight),
        sequence=explained(v, r, sequence_weight),
        within_prompt=explained(
            less_group_mean(v, group, sequence_weight), less_group_mean(r, group, sequence_weight), sequence_weight
        ),
        by_position=[explained(v[decile == d], r[decile == d], token_weight[decile == d]) for d in range(NUM_DECILES)],
    )


def position_deciles(action_cu_seqlens: Int64[Int64Array, "S1"]) -> Int64[Int64Array, "A"]:
    """``[A]`` which tenth (0-9) of its response each action stands in; of a short response not every tenth has one."""
    lengths = np.diff(action_cu_seqlens)
    position = np.arange(int(action_cu_seqlens[-1])) - np.repeat(action_cu_seqlens[:-1], lengths)
    decile: Int64Array = (position * NUM_DECILES) // np.repeat(np.maximum(lengths, 1), lengths)
    return decile


def mean_by_position(
    per_action: Float[FloatArray, "A"], action_cu_seqlens: Int64[Int64Array, "S1"]
) -> list[float | None]:
    """Mean of a per-action quantity ``[A]`` in each tenth of the response; None where no action stands."""
    decile = position_deciles(action_cu_seqlens)
    count = np.bincount(decile, minlength=NUM_DECILES)
    total = np.bincount(decile, np.asarray(per_action, np.float64), minlength=NUM_DECILES)
    return [float(t / c) if c else None for t, c in zip(total, count, strict=True)]


def explained(
    v: Float64[Float64Array, "K"], r: Float64[Float64Array, "K"], weight: Float64[Float64Array, "K"]
) -> float | None:
    """1 - Var(r - v) / Var(r) with weights, all ``[K]``; None if r does not vary."""
    variance = _variance(r, weight)
    if variance is None or variance <= CRUMBS * max(1.0, float(np.abs(r).max()) ** 2):
        return None
    error = _variance(r - v, weight)
    assert error is not None
    return 1.0 - error / variance


def _variance(x: Float64[Float64Array, "K"], weight: Float64[Float64Array, "K"]) -> float | None:
    if weight.sum() == 0:
        return None
    return float(np.average(np.square(x - np.average(x, weights=weight)), weights=weight))


def less_group_mean(
    x: Float64[Float64Array, "K"], group: Int64[Int64Array, "K"], weight: Float64[Float64Array, "K"]
) -> Float64[Float64Array, "K"]:
    """``[K]`` x less its weighted mean over its group; `group` numbers the groups from 0."""
    if not len(x):
        return x
    total, mass = np.bincount(group, x * weight), np.bincount(group, weight)
    centred: Float64Array = x - (total / np.maximum(mass, 1e-300))[group]
    return centred

"""How much of the outcome reaches a token, by its distance to the end (the paper's figure 3). Numpy only.

The value target of a correct response less that of a wrong one, over the difference of their rewards: 1 where the
outcome is heard in full, 0 where the target is the critic's own old prediction. With a critic that knows nothing it is
lambda^(T-t); what a critic already knows adds to it, so this is measured and that is drawn beside it.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

from vcppo.learner.algorithm.gae import decoupled_gae

LAMBDAS = (0.9, 0.95, 0.99, 1.0)
DISTANCES = (0, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
"""Bucket b holds the tokens with DISTANCES[b] <= T - 1 - t < DISTANCES[b + 1]."""

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


def reward_signal(
    values: Float32[Float32Array, "A"],
    outcome_rewards: Float32[Float32Array, "S"],
    correct: Bool[NDArray[np.bool_], "S"],
    action_cu_seqlens: Int64[Int64Array, "S+1"],
    *,
    gamma: float = 1.0,
) -> dict[float, list[float | None]]:
    """Signal by lambda and bucket of distance; None where no correct or no wrong response is that long, or where both
    earn the same.

    Args:
        values: ``[A]`` V before each action; every response counts as ended, whatever cut it.
        outcome_rewards: ``[S]``.
        correct: ``[S]`` bool.
        action_cu_seqlens: ``[S+1]``.
    """
    cu, lengths = action_cu_seqlens, np.diff(action_cu_seqlens)
    rewards = np.zeros(int(cu[-1]), np.float32)
    rewards[cu[1:][lengths > 0] - 1] = outcome_rewards[lengths > 0]
    distance = np.repeat(cu[1:], lengths) - 1 - np.arange(int(cu[-1]))
    bucket = np.searchsorted(DISTANCES, distance, side="right") - 1
    num_buckets = len(DISTANCES) - 1
    side = np.repeat(correct, lengths)
    kinds = outcome_rewards[correct], outcome_rewards[~correct]
    gap = float(kinds[0].mean() - kinds[1].mean()) if all(map(len, kinds)) else 0.0
    if gap == 0.0:  # graded rewards may not tell right from wrong
        return {lam: [None] * num_buckets for lam in LAMBDAS}
    ends = np.zeros(len(lengths), np.float32)
    found: dict[float, list[float | None]] = {}
    for lam in LAMBDAS:
        targets = decoupled_gae(
            rewards, values, ends, cu, gamma=gamma, lambda_actor=lam, lambda_critic=lam
        ).value_targets.astype(np.float64)
        means = [_means(targets[kept], bucket[kept], num_buckets) for kept in (side, ~side)]
        found[lam] = [None if np.isnan(d) else float(d) for d in (means[0] - means[1]) / gap]
    return found


def _means(
    x: Float64[NDArray[np.float64], "K"], bucket: Int64[Int64Array, "K"], num_buckets: int
) -> Float64[NDArray[np.float64], "{num_buckets}"]:
    """Mean of x in each bucket, NaN where it is empty; tokens beyond the last bucket are left out."""
    inside = bucket < num_buckets
    count = np.bincount(bucket[inside], minlength=num_buckets)
    total = np.bincount(bucket[inside], x[inside], minlength=num_buckets)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)

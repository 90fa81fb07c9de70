"""What the peers share: GAE backward over padded float32 arrays with one λ, `returns = advantages + values`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tests.conformance.interface import BoolArray, Float32Array, Settings, Shard, Unsupported


def the_one_lambda(settings: Settings) -> np.float32:
    if settings.lambda_actor != settings.lambda_critic:
        raise Unsupported("one λ for advantages and value targets")
    return np.float32(settings.lambda_actor)


def only_gae(settings: Settings) -> None:
    if settings.kind != "gae":
        raise Unsupported("estimators of peers without a critic are not compared here")


def only_terminal(shards: Sequence[Shard], settings: Settings) -> None:
    only_gae(settings)
    cut = any("length" in shard.finish_reasons for shard in shards)
    if cut and settings.truncation != "terminal":
        raise Unsupported("the finish reason does not enter the estimator: a cut response is an end")


def last_actions(shard: Shard) -> NDArray[np.int64]:
    """``[S]`` column of each response's last action."""
    if not len(shard.lengths):
        return shard.lengths
    last: NDArray[np.int64] = shard.rewards.shape[1] - 1 - np.argmax(shard.action_mask[:, ::-1], axis=1)
    return last


def outcomes_at(shard: Shard, columns: NDArray[np.int64]) -> Float32Array:
    """``[S, W]`` each response's outcome at its column."""
    rewards = np.zeros_like(shard.rewards)
    rewards[np.arange(len(columns)), columns] = shard.rewards.sum(axis=1)
    return rewards


def gae_with_targets(
    rewards: Float32Array,
    values: Float32Array,
    settings: Settings,
    steps: BoolArray | None = None,
    after: Float32Array | None = None,
) -> tuple[Float32Array, Float32Array]:
    """``[S, W]`` advantages and value targets, a step a column. Where `steps` is False nothing happens: advantage and
    next value are carried over it unchanged. `after`: ``[S]`` V after the last column, else 0."""
    lam, gamma = the_one_lambda(settings), np.float32(settings.gamma)
    advantages = np.zeros_like(rewards)
    carry = np.zeros(len(rewards), np.float32)
    next_value = np.zeros_like(carry) if after is None else after
    for t in reversed(range(rewards.shape[1])):
        acts = True if steps is None else steps[:, t]
        td_error = rewards[:, t] + gamma * next_value - values[:, t]
        carry = np.where(acts, td_error + gamma * lam * carry, carry)
        next_value = np.where(acts, values[:, t], next_value)
        advantages[:, t] = carry
    return advantages, advantages + values


def bessel_whitened(advantages: Float32Array, mask: BoolArray) -> Float32Array:
    """verl's and TRL's: variance with n − 1, refused below two actions."""
    kept = advantages[mask]
    if kept.size < 2:
        raise ValueError(f"whitening needs two actions, there are {kept.size}")
    whitened: Float32Array = (advantages - kept.mean()) / np.sqrt(kept.var(ddof=1) + np.float32(1e-8))
    return whitened

"""Ours: the learner's own functions; each shard in a thread of its own, as ranks are processes of their own."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np
from numpy.typing import NDArray

from tests.conformance.interface import Estimate, Settings, Shard
from vcppo.learner.algorithm.advantages import (
    SumOverRanks,
    group_centred_advantages,
    group_mean_advantages,
    leave_one_out_advantages,
    place_ends,
    spread_over_actions,
    whiten,
)
from vcppo.learner.algorithm.gae import decoupled_gae, monte_carlo_returns


class Vcppo:
    name = "vcppo"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        ranks = _Ranks(len(shards))
        with ThreadPoolExecutor(len(shards)) as pool:
            return list(pool.map(lambda rank: _estimate(shards[rank], settings, ranks, rank), range(len(shards))))


def _estimate(shard: Shard, settings: Settings, ranks: _Ranks, rank: int) -> Estimate:
    cu = np.concatenate([[0], np.cumsum(shard.action_mask.sum(axis=1))]).astype(np.int64)
    if settings.kind != "gae":
        return _of_groups(shard, settings, cu, lambda vector: ranks.sum(rank, vector))
    rows = np.arange(len(shard.lengths))
    ends = place_ends(
        outcome_rewards=shard.rewards.sum(axis=1),
        last_values=shard.values[rows, shard.lengths],
        truncated=np.array([reason == "length" for reason in shard.finish_reasons], np.bool_),
        action_cu_seqlens=cu,
        truncation=settings.truncation,
    )
    result = decoupled_gae(
        ends.rewards,
        shard.values[:, :-1][shard.action_mask],
        ends.bootstrap_values,
        cu,
        gamma=settings.gamma,
        lambda_actor=settings.lambda_actor,
        lambda_critic=settings.lambda_critic,
    )
    advantages = result.advantages
    if settings.whiten:
        advantages = whiten(advantages, ends.mask, lambda vector: ranks.sum(rank, vector))
    return Estimate(*(_padded(flat, shard) for flat in (advantages, result.value_targets, ends.mask)))


def _of_groups(shard: Shard, settings: Settings, cu: NDArray[np.int64], reduce: SumOverRanks) -> Estimate:
    outcomes, groups = shard.rewards.sum(axis=1), [str(group) for group in shard.groups]
    if settings.centres:
        if settings.kind == "reinforce_plus_plus_baseline":
            outcomes = group_centred_advantages(outcomes, groups)
        ends = place_ends(outcomes, np.zeros_like(outcomes), np.zeros(len(outcomes), np.bool_), cu, "terminal")
        advantages = monte_carlo_returns(ends.rewards, cu)
    else:
        estimator = {"group_mean": group_mean_advantages, "leave_one_out": leave_one_out_advantages}[settings.kind]
        advantages = spread_over_actions(estimator(outcomes, groups), cu)
    if settings.whiten:
        advantages = whiten(advantages, np.ones(len(advantages), np.bool_), reduce, centre=settings.centres)
    return Estimate(_padded(advantages, shard), np.zeros(shard.action_mask.shape, np.float32))


def _padded(flat: NDArray[np.generic], shard: Shard) -> NDArray[np.generic]:
    padded = np.zeros(shard.action_mask.shape, flat.dtype)
    padded[shard.action_mask] = flat
    return padded


class _Ranks:
    """An all-reduce between threads; a rank that stays away breaks it after the deadline."""

    def __init__(self, num_ranks: int) -> None:
        self._parts: list[NDArray[np.float64] | None] = [None] * num_ranks
        self._barrier = Barrier(num_ranks, timeout=30.0)

    def sum(self, rank: int, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        self._parts[rank] = vector
        self._barrier.wait()
        total: NDArray[np.float64] = np.sum(self._parts, axis=0)
        self._barrier.wait()  # nobody writes the next round's part before all have read this one's
        return total

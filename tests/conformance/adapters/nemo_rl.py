"""NeMo-RL's `GeneralizedAdvantageEstimator`, over the whole batch on its driver.

https://github.com/NVIDIA-NeMo/RL/blob/00925dd1e44b816b5cb6afa27d23d7bd7af2b957/nemo_rl/algorithms/advantage_estimator.py
(Apache-2.0). Two λs (`gae_lambda_policy`, `gae_lambda_value`): GAE runs once for each. The outcome goes on the last
action; over masked tokens advantage and next value are carried unchanged. At λ = γ = 1 it sums rewards in place of the
recursion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tests.conformance.adapters.padded import gae_with_targets, last_actions, only_terminal, outcomes_at
from tests.conformance.interface import BoolArray, Estimate, Float32Array, Settings, Shard, concatenate, split


class NemoRl:
    name = "NeMo-RL"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_terminal(shards, settings)
        batch = concatenate(shards)
        rewards, values, mask = outcomes_at(batch, last_actions(batch)), batch.values[:, :-1], batch.action_mask
        advantages, _ = _gae(rewards, values, mask, replace(settings, lambda_critic=settings.lambda_actor))
        _, targets = _gae(rewards, values, mask, replace(settings, lambda_actor=settings.lambda_critic))
        if settings.whiten:
            advantages = _whitened(advantages, mask)
        return split(Estimate(advantages, targets), shards)


def _gae(
    rewards: Float32Array, values: Float32Array, mask: BoolArray, settings: Settings
) -> tuple[Float32Array, Float32Array]:
    if settings.lambda_actor == settings.gamma == 1.0:
        advantages = np.cumsum((rewards * mask)[:, ::-1], axis=1)[:, ::-1] - values
        return advantages, advantages + values
    return gae_with_targets(rewards, values, settings, steps=mask)


def _whitened(advantages: Float32Array, mask: BoolArray) -> Float32Array:
    """Variance with n − 1: of one action it is 0 · (1 / 0), which is not a number, and nobody refuses it."""
    kept, count = advantages[mask], np.float32(mask.sum())
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = kept.var() * (count / (count - 1))
        whitened: Float32Array = (advantages - kept.mean()) / np.sqrt(variance + np.float32(1e-8))
    return whitened

"""OpenRLHF's `get_advantages_and_returns`, over the whole batch on its controller.

https://github.com/OpenRLHF/OpenRLHF/blob/main/openrlhf/trainer/ppo_utils/experience_maker.py
Values and rewards are multiplied by the action mask, then GAE runs over the whole width, a step a token. The outcome
goes on the last action (`compute_reward` in openrlhf/models/utils.py). Whitening: over all actions, with n.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.conformance.adapters.padded import gae_with_targets, last_actions, only_terminal, outcomes_at
from tests.conformance.interface import Estimate, Settings, Shard, concatenate, split


class OpenRlhf:
    name = "OpenRLHF"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_terminal(shards, settings)
        batch = concatenate(shards)
        rewards = outcomes_at(batch, last_actions(batch))
        values = np.where(batch.action_mask, batch.values[:, :-1], np.float32(0))
        advantages, targets = gae_with_targets(rewards, values, settings)
        if settings.whiten:
            kept = advantages[batch.action_mask]
            mean = kept.mean() if kept.size else np.float32(0)
            variance = np.square(kept - mean).mean() if kept.size else np.float32(0)
            advantages = (advantages - mean) / np.sqrt(max(variance, np.float32(1e-8)))
        return split(Estimate(advantages, targets), shards)

"""verl's `compute_gae_advantage_return`, over the whole batch on its driver.

https://github.com/volcengine/verl/blob/main/verl/trainer/ppo/core_algos.py
The backward pass carries advantage and next value unchanged over masked tokens (tool text, padding). The outcome comes
from a reward manager, which puts it on the last token of the attention mask:
https://github.com/volcengine/verl/blob/main/verl/workers/reward_manager/naive.py
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.conformance.adapters.padded import bessel_whitened, gae_with_targets, only_terminal, outcomes_at
from tests.conformance.interface import Estimate, Settings, Shard, concatenate, split


class Verl:
    name = "verl"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_terminal(shards, settings)
        batch = concatenate(shards)
        rewards, values = outcomes_at(batch, batch.lengths - 1), batch.values[:, :-1]
        advantages, targets = gae_with_targets(rewards, values, settings, steps=batch.action_mask)
        if settings.whiten:
            advantages = bessel_whitened(advantages, batch.action_mask)
        return split(Estimate(advantages, targets), shards)

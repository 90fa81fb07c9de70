"""verl's `compute_gae_advantage_return`, over the whole batch on its driver.

https://github.com/volcengine/verl/blob/main/verl/trainer/ppo/core_algos.py
The backward pass carries advantage and next value unchanged over masked tokens (tool text, padding). The outcome comes
from a reward manager, which puts it on the last token of the attention mask:
https://github.com/volcengine/verl/blob/main/verl/workers/reward_manager/naive.py
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.conformance.adapters.padded import bessel_whitened, only_terminal, outcomes_at, the_one_lambda
from tests.conformance.interface import Estimate, Settings, Shard, concatenate, split


class Verl:
    name = "verl"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        lam, gamma = the_one_lambda(settings), np.float32(settings.gamma)
        only_terminal(shards, settings)
        batch = concatenate(shards)
        rewards, values = outcomes_at(batch, batch.lengths - 1), batch.values[:, :-1]
        advantages = np.zeros_like(rewards)
        carry, next_value = np.zeros((2, len(rewards)), np.float32)
        for t in reversed(range(rewards.shape[1])):
            acts = batch.action_mask[:, t]
            td_error = rewards[:, t] + gamma * next_value - values[:, t]
            carry = np.where(acts, td_error + gamma * lam * carry, carry)
            next_value = np.where(acts, values[:, t], next_value)
            advantages[:, t] = carry
        targets = advantages + values
        if settings.whiten:
            advantages = bessel_whitened(advantages, batch.action_mask)
        return split(Estimate(advantages, targets), shards)

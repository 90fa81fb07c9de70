"""TRL's `PPOTrainer`, each rank by itself.

https://github.com/huggingface/trl/blob/main/trl/experimental/ppo/ppo_trainer.py
Its steps 4 to 6: where there is room, the score goes one position *after* the last token, values are kept up to and
including that position, and GAE runs over the whole width. Whitening is over the rank's own response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.conformance.adapters.padded import bessel_whitened, gae_with_targets, only_terminal, outcomes_at
from tests.conformance.interface import Estimate, Settings, Shard, Unsupported


class Trl:
    name = "TRL"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_terminal(shards, settings)
        return [self._estimate(shard, settings) for shard in shards]

    def _estimate(self, shard: Shard, settings: Settings) -> Estimate:
        num_responses, width = shard.rewards.shape
        if not num_responses:
            raise Unsupported("every rank has the same number of responses: an empty one can't arise")
        column = np.arange(width)
        if (shard.action_mask != (column < shard.lengths[:, None])).any():
            raise Unsupported("single-turn: no mask for tool text")
        rewards = outcomes_at(shard, np.where(shard.lengths < width, shard.lengths, shard.lengths - 1))
        values = np.where(column <= shard.lengths[:, None], shard.values[:, :-1], np.float32(0))
        advantages, targets = gae_with_targets(rewards, values, settings)
        if settings.whiten:
            advantages = bessel_whitened(advantages, shard.action_mask)
        return Estimate(advantages, targets)

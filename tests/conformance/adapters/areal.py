"""AReaL's `PPOActor._compute_advantages`, each rank by itself, with `Normalization` of advantages over all of them.

https://github.com/inclusionAI/AReaL/blob/00ed92443a5a3c1711d0a704a75a04bdd945fb6d/areal/trainer/ppo/actor.py
(Apache-2.0). The outcome goes on the response's last token. A response that fills the width of its batch counts as cut
(`seq_no_eos_mask`): V after its last token is then the first next value, and `mask_no_eos_with_zero` leaves its outcome
out. Over masked tokens advantage and next value are carried unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.conformance.adapters.padded import gae_with_targets, only_gae, outcomes_at
from tests.conformance.interface import Estimate, Settings, Shard, Unsupported


class Areal:
    name = "AReaL"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_gae(settings)
        if settings.truncation == "mask":
            raise Unsupported("a cut response is trained on")
        if any(not len(shard.lengths) for shard in shards):
            raise Unsupported("every rank has responses: an empty one can't arise")
        estimates = [self._estimate(shard, settings) for shard in shards]
        if settings.whiten:
            kept = np.concatenate([e.advantages[s.action_mask] for e, s in zip(estimates, shards, strict=True)])
            kept = kept.astype(np.float64)
            std = kept.std(ddof=1) if kept.size > 1 else 1.0
            estimates = [Estimate((e.advantages - kept.mean()) / (std + 1e-5), e.value_targets) for e in estimates]
        return estimates

    def _estimate(self, shard: Shard, settings: Settings) -> Estimate:
        fills = shard.lengths == shard.rewards.shape[1]
        rewards = outcomes_at(shard, shard.lengths - 1)
        if settings.truncation == "bootstrap":
            rewards[fills] = 0
        after = shard.values[:, -1] * fills
        return Estimate(*gae_with_targets(rewards, shard.values[:, :-1], settings, shard.action_mask, after))

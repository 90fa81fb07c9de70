"""slime's `compute_advantages_and_returns` with its estimator `ppo`.

https://github.com/THUDM/slime/blob/00c2d6db0f23a4900be6e80a8eb81eebf9e1ebff/slime/backends/megatron_utils/loss.py and
https://github.com/THUDM/slime/blob/06787cf5798525d9af068135ade88dc795d75821/slime/utils/ppo_utils.py (Apache-2.0).
The outcome goes on the response's last token. `chunked_gae` makes a step of every token of the response, tool text
too, and is a scan: within a chunk of 128 a product with a matrix of powers, between chunks a recursion. Whitening
(`distributed_masked_whiten`): over the loss mask of all ranks, with n − 1 from two actions on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.conformance.adapters.padded import only_terminal, outcomes_at, the_one_lambda
from tests.conformance.interface import Estimate, Float32Array, Settings, Shard, Unsupported, concatenate, split

CHUNK = 128


class Slime:
    name = "slime"

    def estimate(self, shards: Sequence[Shard], settings: Settings) -> list[Estimate]:
        only_terminal(shards, settings)
        if any(not len(shard.lengths) for shard in shards):
            raise Unsupported("every rank has responses: an empty one can't arise")
        batch = concatenate(shards)
        inside = np.arange(batch.rewards.shape[1]) < batch.lengths[:, None]
        rewards, values = outcomes_at(batch, batch.lengths - 1), np.where(inside, batch.values[:, :-1], np.float32(0))
        gamma, lam = np.float32(settings.gamma), the_one_lambda(settings)
        following = np.concatenate([values[:, 1:], np.zeros((len(values), 1), np.float32)], axis=1)
        advantages = _scan((rewards + gamma * following - values)[:, ::-1], gamma * lam)[:, ::-1]
        targets = advantages + values
        if settings.whiten:
            kept = advantages[batch.action_mask]
            variance = np.square(kept).mean() - np.square(kept.mean())
            variance *= np.float32(kept.size / (kept.size - 1)) if kept.size >= 2 else np.float32(1)
            advantages = (advantages - kept.mean()) / np.sqrt(variance + np.float32(1e-8))
        return split(Estimate(advantages, targets), shards)


def _scan(x: Float32Array, weight: np.float32) -> Float32Array:
    """``[S, W]`` s_t = x_t + weight s_{t-1}."""
    away = np.arange(CHUNK)[None, :] - np.arange(CHUNK)[:, None]
    powers = np.where(away >= 0, weight ** np.maximum(away, 0), np.float32(0)).astype(np.float32)
    carried = weight ** np.arange(1, CHUNK + 1, dtype=np.float32)
    found = np.zeros_like(x)
    before = np.zeros((len(x), 1), np.float32)
    for begin in range(0, x.shape[1], CHUNK):
        part = x[:, begin : begin + CHUNK]
        width = part.shape[1]
        found[:, begin : begin + width] = part @ powers[:width, :width] + before * carried[:width]
        before = found[:, begin + width - 1 : begin + width]
    return found

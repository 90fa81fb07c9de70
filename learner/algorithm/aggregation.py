"""How the summands of many responses become one loss. Numpy only.

A loss is sum_t v_t summand_t / D. The weights v_t and D are made of whole arrays, before they are cut into packs: so
neither packing nor the number of ranks changes the objective.

Per-action arrays are flat ``[A]`` over the actions of S sequences; ``action_cu_seqlens [S+1]`` int64 says whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Aggregation = Literal["token", "sequence", "fixed_length"]


def loss_weights(
    mask: Bool[BoolArray, "A"], action_cu_seqlens: Int64[Int64Array, "S1"], aggregation: Aggregation
) -> Float32[Float32Array, "A"]:
    """``[A]`` v_t: 1 for each action of `mask`, 0 for others; over their number in the sequence for `sequence`."""
    weights = mask.astype(np.float32)
    if aggregation == "sequence":
        lengths = np.diff(action_cu_seqlens)
        weights /= np.repeat(np.maximum(_kept(mask, action_cu_seqlens), 1), lengths).astype(np.float32)
    return weights


def loss_denominator(
    mask: Bool[BoolArray, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    members: Sequence[int],
    aggregation: Aggregation,
    fixed_length: int,
) -> int:
    """D of the mini-batch of the sequences `members`, at least 1.

    `token`: its actions under `mask`. `sequence`: its sequences that have any. `fixed_length`: all its sequences times
    that length, as in Dr.GRPO: a long response weighs more than a short one, but not within a mean of its own.
    """
    kept = _kept(mask, action_cu_seqlens)[list(members)]
    found = {"token": kept.sum(), "sequence": (kept > 0).sum(), "fixed_length": len(members) * fixed_length}
    return max(1, int(found[aggregation]))


def _kept(mask: Bool[BoolArray, "A"], action_cu_seqlens: Int64[Int64Array, "S1"]) -> Int64[Int64Array, "S1-1"]:
    """``[S]`` actions under `mask` of each sequence."""
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(mask, dtype=np.int64)])
    kept: Int64Array = np.diff(before[action_cu_seqlens])
    return kept

"""One rank's tokens of a pack that several ranks share (`vcppo.learner.kernels.sequence_parallel`)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from vcppo.learner.batching.packing import Int64Array, PackedBatch


@dataclass(frozen=True, slots=True)
class ShardedBatch(PackedBatch):
    """Tokens ``rank · n : (rank + 1) · n`` of a pack. What is of tokens and actions is this rank's, counted from its
    first token; where sequences begin and end is the whole pack's.

    An action belongs to the rank that has its state. The action itself may be the next rank's first token, so
    `targets` holds the tokens. The pack is filled up to P · n tokens by a sequence of its own, which has no action.

    Attributes:
        cu_seqlens, lengths: of the whole pack, filled up.
        action_index: one more than where each state is: n where the action is the next rank's.
        action_cu_seqlens: of this rank's actions, over all sequences.
        last_token_index, sequence_index: of the sequences that end here.
        targets: ``[A]`` int64 token ids of the actions.
        num_shards: P.
    """

    targets: Tensor
    num_shards: int

    @property
    def actions(self) -> Tensor:
        """``[A]`` int64 token ids."""
        return self.targets

    def to(self, device: torch.device | str) -> ShardedBatch:
        """As `PackedBatch.to`."""
        moved = PackedBatch.to(self, device)
        assert isinstance(moved, ShardedBatch)
        return replace(moved, targets=self.targets.to(device))


def shard(packed: PackedBatch, slots: Int64Array, rank: int, size: int) -> tuple[ShardedBatch, Int64Array]:
    """The part of `rank` of `size`, and where its actions stand in the batch's flat arrays.

    Args:
        slots: ``[A]`` of the whole pack.
    """
    padding = -packed.num_tokens % size
    whole = packed.num_tokens + padding
    own = slice(rank * whole // size, (rank + 1) * whole // size)
    states, ends = packed.action_index - 1, packed.last_token_index
    mine, ended = _inside(states, own), _inside(ends, own)
    count = torch.cat([torch.zeros(1, dtype=torch.int64), mine.cumsum(0)])
    filled = torch.tensor([whole] if padding else [], dtype=torch.int32)
    return ShardedBatch(
        token_ids=_filled(packed.token_ids, padding)[own],
        position_ids=torch.cat([packed.position_ids, torch.arange(padding)])[own],
        cu_seqlens=torch.cat([packed.cu_seqlens, filled]),
        action_index=states[mine] + 1 - own.start,
        action_cu_seqlens=count[packed.action_cu_seqlens],
        last_token_index=ends[ended] - own.start,
        surprise=_filled(packed.surprise, padding)[own],
        sequence_index=tuple(i for i, is_mine in zip(packed.sequence_index, ended.tolist(), strict=True) if is_mine),
        lengths=(*packed.lengths, padding) if padding else packed.lengths,
        targets=packed.actions[mine],
        num_shards=size,
    ), np.asarray(slots[mine.numpy()])


def _inside(index: Tensor, own: slice) -> Tensor:
    return torch.logical_and(index >= own.start, index < own.stop)


def _filled(values: Tensor, padding: int) -> Tensor:
    return torch.cat([values, values.new_zeros(padding)])

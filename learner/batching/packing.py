"""Trajectories to packed micro-batches: no padding, a token budget, equal shares, nothing crosses a sequence.

All of it is deterministic in its arguments, so ranks that know every length agree on the plan without talking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vcppo.common.records.trajectory import Trajectory

Int64Array = NDArray[np.int64]
Float32Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """S whole sequences (prompt + response) end to end; N tokens, A actions.

    Attributes:
        token_ids: ``[N]`` int64.
        position_ids: ``[N]`` int64, from 0 in each sequence.
        cu_seqlens: ``[S+1]`` int32, sequence s owns tokens ``cu_seqlens[s]:cu_seqlens[s+1]``.
        action_index: ``[A]`` int64, where in the pack each action token stands. The state it was chosen in ends one
            token earlier (`state_index`), in the same sequence.
        action_cu_seqlens: ``[S+1]`` int64, sequence s owns actions ``action_cu_seqlens[s]:action_cu_seqlens[s+1]``.
        last_token_index: ``[S]`` int64, each sequence's last token: the state after everything.
        surprise: ``[N]`` float32 nats, -log-prob that an action was sampled with, from 0 to 10; 0 at other tokens.
        sequence_index: ``[S]`` which trajectory of the caller's list each sequence is.
        lengths: of each sequence, Python ints: what attention is planned from.

    A dummy (see `build_packed`) has one token, no sequence_index and no action; its token is a sequence to attention
    alone: cu_seqlens is ``[2]``, action_cu_seqlens ``[1]``.
    """

    token_ids: Int64[Tensor, "N"]
    position_ids: Int64[Tensor, "N"]
    cu_seqlens: Int32[Tensor, "_"]
    action_index: Int64[Tensor, "A"]
    action_cu_seqlens: Int64[Tensor, "S1"]
    last_token_index: Int64[Tensor, "S1-1"]
    surprise: Float32[Tensor, "N"]
    sequence_index: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """N; 1 for a dummy."""
        return len(self.token_ids)

    @property
    def num_actions(self) -> int:
        """A; 0 for a dummy."""
        return len(self.action_index)

    @property
    def state_index(self) -> Int64[Tensor, "A"]:
        """``[A]`` the token whose hidden state predicts (and values) each action."""
        return self.action_index - 1

    @property
    def actions(self) -> Int64[Tensor, "A"]:
        """``[A]`` int64 token ids of the actions."""
        return self.token_ids[self.action_index]

    def to(self, device: torch.device | str) -> PackedBatch:
        """On a CPU itself. To CUDA from pinned memory, so that the copy does not hold up the host (NOT RUN)."""
        if torch.device(device).type != "cuda":
            return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})
        pinned = {name: getattr(self, name).pin_memory() for name in _TENSORS}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()})


_TENSORS = (
    "token_ids",
    "position_ids",
    "cu_seqlens",
    "action_index",
    "action_cu_seqlens",
    "last_token_index",
    "surprise",
)
_MAX_SURPRISE = 10.0  # nats: beyond, a token is no more of a slip


def pack(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """First-fit decreasing: indices into `lengths` grouped so that no group exceeds `token_budget` tokens.

    Each group comes longest first, which puts similar lengths side by side for attention.

    Raises:
        ValueError: a single sequence exceeds the budget.
    """
    groups: list[list[int]] = []
    room: list[int] = []
    for index in _longest_first(lengths):
        length = lengths[index]
        if length > token_budget:
            raise ValueError(
                f"a trajectory of {length} tokens does not fit learner.micro_batch_tokens={token_budget}; "
                "raise it to at least the longest prompt + response"
            )
        slot = next((i for i, free in enumerate(room) if free >= length), None)
        if slot is None:
            groups.append([])
            room.append(token_budget)
            slot = len(groups) - 1
        groups[slot].append(index)
        room[slot] -= length
    return groups


def split_across_ranks(lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Shares of near-equal token counts: longest first, each to the rank with the fewest tokens so far."""
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for index in _longest_first(lengths):
        rank = tokens.index(min(tokens))
        shares[rank].append(index)
        tokens[rank] += lengths[index]
    return shares


def split_mini_batches(count: int, num_mini_batches: int, seed: int) -> list[list[int]]:
    """A random split of `count` responses into `num_mini_batches` parts of (within one) equally many, drawn by `seed`.

    By count, not by tokens: which responses share an optimizer step must not depend on their lengths.
    """
    order = np.random.default_rng(seed).permutation(count)
    return [[int(i) for i in part] for part in np.array_split(order, num_mini_batches)]


def plan_micro_batches(lengths: Sequence[int], token_budget: int, num_ranks: int) -> list[list[list[int]]]:
    """``plan[rank][micro_batch]`` lists indices into `lengths`; every rank has equally many micro-batches.

    Some may be empty: `build_packed` makes a dummy of these, which ranks need to stay in lockstep under ZeRO.
    """
    plan = []
    for share in split_across_ranks(lengths, num_ranks):
        groups = pack([lengths[i] for i in share], token_budget)
        plan.append([[share[i] for i in group] for group in groups])
    most = max(1, *(len(groups) for groups in plan))
    return [groups + [[] for _ in range(most - len(groups))] for groups in plan]


def build_packed(trajectories: Sequence[Trajectory], sequence_index: Sequence[int] | None = None) -> PackedBatch:
    """Pack ``trajectories[i] for i in sequence_index`` (default: all, in order), on the CPU.

    No trajectory at all gives a dummy of one token without actions: its losses are 0 and so are its gradients.

    Raises:
        ValueError: an action at the very start of a sequence (there is no state to choose it in).
    """
    index = tuple(range(len(trajectories))) if sequence_index is None else tuple(sequence_index)
    chosen = [trajectories[i] for i in index]
    if not chosen:
        return _dummy()
    lengths = np.array([t.num_tokens for t in chosen], np.int64)
    cu_seqlens = _cumulative(lengths)
    actions = [_action_positions(t) for t in chosen]
    tokens = [part for t in chosen for part in (t.prompt_token_ids, t.response_token_ids)]
    return PackedBatch(
        token_ids=torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        position_ids=torch.from_numpy(np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)),
        cu_seqlens=torch.from_numpy(cu_seqlens.astype(np.int32)),
        action_index=torch.from_numpy(
            np.concatenate([a + start for a, start in zip(actions, cu_seqlens, strict=False)])
        ),
        action_cu_seqlens=torch.from_numpy(_cumulative(np.array([len(a) for a in actions], np.int64))),
        last_token_index=torch.from_numpy(cu_seqlens[1:] - 1),
        surprise=torch.from_numpy(np.concatenate([_surprise(t) for t in chosen])),
        sequence_index=index,
        lengths=tuple(lengths.tolist()),
    )


def action_cu_seqlens(trajectories: Sequence[Trajectory]) -> Int64[Int64Array, "S1"]:
    """``[S+1]`` of the flat per-action arrays of a whole batch, in the order of `trajectories`."""
    return _cumulative(np.array([int(t.action_mask.sum()) for t in trajectories], np.int64))


def behaviour_log_probs(trajectories: Sequence[Trajectory]) -> Float32[Float32Array, "A"]:
    """``[A]`` float32, what the generators recorded, actions only."""
    parts = [t.behaviour_log_probs[t.action_mask] for t in trajectories]
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)


def action_slots(batch: PackedBatch, batch_action_cu_seqlens: Int64[Int64Array, "S1"]) -> Int64[Int64Array, "A"]:
    """``[A of the micro-batch]``: where its actions stand in the whole batch's flat arrays.

    ``flat[slots]`` reads what a micro-batch needs; ``flat[slots] = result`` writes its results back.
    """
    starts = batch_action_cu_seqlens
    parts = [np.arange(starts[i], starts[i + 1]) for i in batch.sequence_index]
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _action_positions(trajectory: Trajectory) -> Int64[Int64Array, "A"]:
    positions = np.flatnonzero(trajectory.action_mask) + len(trajectory.prompt_token_ids)
    if len(positions) and positions[0] == 0:
        raise ValueError(f"trajectory {trajectory.id}: its first token is an action but there is no prompt before it")
    return positions.astype(np.int64)


def _surprise(trajectory: Trajectory) -> Float32[Float32Array, "N"]:
    found = np.zeros(trajectory.num_tokens, np.float32)
    actions = np.where(trajectory.action_mask, -trajectory.behaviour_log_probs, 0.0)
    found[len(trajectory.prompt_token_ids) :] = actions.clip(0.0, _MAX_SURPRISE)
    return found


def _dummy() -> PackedBatch:
    none = torch.zeros(0, dtype=torch.int64)
    zero = torch.zeros(1, dtype=torch.int64)
    cu_seqlens = torch.tensor([0, 1], dtype=torch.int32)
    return PackedBatch(zero, zero, cu_seqlens, none, zero, none, torch.zeros(1), (), (1,))


def _cumulative(lengths: Int64[Int64Array, "S"]) -> Int64[Int64Array, "S+1"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))

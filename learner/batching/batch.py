"""A claimed batch: R rollouts, their S trajectories and the flat per-action arrays of the step, the same on every rank.

Every rank holds the whole batch (bytes are cheap beside activations) and computes the model's part of its
own share only; `gather_flat` puts the shares together. So advantages, whitening, mini-batches and statistics
are plain numpy over whole arrays, and nothing depends on how many ranks there are.

A rollout is what a prompt, a credit, a line of the ledger and a member of a group stand for. It has one trajectory of
each of its conversations (`vcppo.common.records.segments`): one, but where an agent began anew. Models, GAE and
statistics of tokens know trajectories; baselines, weights of responses and mini-batches know rollouts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.segments import split
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import decode_trajectory
from vcppo.learner.algorithm.advantages import SumOverRanks
from vcppo.learner.algorithm.turns import Turns, find_turns
from vcppo.learner.batching.packing import (
    Int64Array,
    PackedBatch,
    action_cu_seqlens,
    action_slots,
    behaviour_log_probs,
    build_packed,
    plan_micro_batches,
    split_mini_batches,
)
from vcppo.learner.batching.sequence_shard import shard
from vcppo.learner.batching.turn_rewards import PlacedRewards, place_rewards

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Batch:
    """R rollouts in claim order, S trajectories, A actions.

    Attributes:
        rollouts: ``R`` of them, as they came: each with its `segments`.
        version: the learner's policy version when they were claimed.
    """

    rollouts: list[Trajectory]
    version: int

    @classmethod
    def decode(cls, payloads: Sequence[bytes], version: int) -> Batch:
        """From trajectories on the wire. Raises what `decode_trajectory` raises."""
        return cls([decode_trajectory(payload) for payload in payloads], version)

    def __len__(self) -> int:
        return len(self.trajectories)

    @cached_property
    def trajectories(self) -> list[Trajectory]:
        """``S`` of them, those of a rollout one behind the other."""
        return [each for rollout in self.rollouts for each in split(rollout)]

    @cached_property
    def rollout_cu_seqlens(self) -> Int64Array:
        """``[R+1]`` int64: rollout r owns ``trajectories[cu[r]:cu[r+1]]``; the first is the one with its id."""
        counts = [len(rollout.conversations) for rollout in self.rollouts]
        return np.cumsum([0, *counts], dtype=np.int64)

    @cached_property
    def rollout_action_cu_seqlens(self) -> Int64Array:
        """``[R+1]`` int64: rollout r owns ``flat[cu[r]:cu[r+1]]`` of every per-action array."""
        found: Int64Array = self.action_cu_seqlens[self.rollout_cu_seqlens]
        return found

    @cached_property
    def rollout_numbers(self) -> Int64Array:
        """``[S]`` int64, the rollout of each trajectory."""
        return np.repeat(np.arange(len(self.rollouts)), np.diff(self.rollout_cu_seqlens))

    def sequences_of(self, rollouts: Iterable[int]) -> list[int]:
        """Numbers of the trajectories of these rollouts, in their order."""
        cu = self.rollout_cu_seqlens
        return [i for r in rollouts for i in range(int(cu[r]), int(cu[r + 1]))]

    def rollouts_of(self, sequences: Sequence[int]) -> list[int]:
        """Numbers of the rollouts that these trajectories belong to, each once."""
        return [int(r) for r in np.unique(self.rollout_numbers[list(sequences)])]

    @cached_property
    def action_cu_seqlens(self) -> Int64Array:
        """``[S+1]`` int64: sequence s owns ``flat[cu[s]:cu[s+1]]`` of every per-action array."""
        return action_cu_seqlens(self.trajectories)

    @property
    def num_actions(self) -> int:
        """A of the flat arrays."""
        return int(self.action_cu_seqlens[-1])

    @cached_property
    def turns(self) -> Turns:
        """Runs of actions with no other text between them."""
        places = [np.flatnonzero(trajectory.action_mask) for trajectory in self.trajectories]
        flat = np.concatenate(places).astype(np.int64) if places else np.zeros(0, np.int64)
        return find_turns(flat, self.action_cu_seqlens)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each trajectory, prompt and response."""
        return [trajectory.num_tokens for trajectory in self.trajectories]

    @property
    def num_tokens(self) -> int:
        """Prompts and responses of all trajectories."""
        return sum(self.lengths)

    @cached_property
    def outcome_rewards(self) -> NDArray[np.float32]:
        """``[S]`` the verifier's rewards; trajectories of one rollout share it."""
        return np.array([trajectory.reward for trajectory in self.trajectories], np.float32)

    @cached_property
    def placed_rewards(self) -> PlacedRewards:
        """The same, turn by turn."""
        return place_rewards(self.trajectories, self.action_cu_seqlens)

    @cached_property
    def correct(self) -> NDArray[np.bool_]:
        """``[S]`` judged correct by the verifier."""
        return np.array([trajectory.outcome == "correct" for trajectory in self.trajectories], np.bool_)

    @cached_property
    def truncated(self) -> NDArray[np.bool_]:
        """``[S]`` cut by length, as the generator said."""
        return np.array([trajectory.finish_reason == "length" for trajectory in self.trajectories], np.bool_)

    @cached_property
    def behaviour_log_probs(self) -> NDArray[np.float32]:
        """``[A]`` what the generators recorded."""
        return behaviour_log_probs(self.trajectories)

    @cached_property
    def group_ids(self) -> list[str]:
        """``S`` of them: responses to one problem share one."""
        return [trajectory.group_id for trajectory in self.trajectories]

    @cached_property
    def staleness(self) -> Int64Array:
        """``[S]`` learner version minus the oldest version in the trajectory."""
        return np.array([self.version - trajectory.oldest_version for trajectory in self.trajectories], np.int64)

    @property
    def prompt_ids(self) -> list[str]:
        """``R`` of them: what the store is told when they are trained."""
        return [rollout.prompt_id for rollout in self.rollouts]


@dataclass(frozen=True)
class Share:
    """Which rank this is, and how micro-batches are cut.

    Attributes:
        micro_batch_tokens: most tokens of a micro-batch on one rank.
        sequence_parallel_size: so many neighbouring ranks share each pack.
    """

    rank: int
    num_ranks: int
    micro_batch_tokens: int
    sequence_parallel_size: int = 1


class MicroBatch(NamedTuple):
    """One pack, and where its actions stand: ``flat[slots]`` of a batch's ``[A]`` array are its own."""

    packed: PackedBatch
    slots: Int64Array

    def of(self, flat: NDArray[np.generic], device: torch.device) -> Tensor:
        """Its part ``[A]`` of a batch's flat array, on `device`."""
        return torch.from_numpy(np.ascontiguousarray(flat[self.slots])).to(device)


class Packer:
    """This rank's packs of a batch. Those of the whole batch are made once: values, log-probs and every epoch with one
    mini-batch go over the same ones. Mini-batches of several are drawn anew each epoch, and packed when they come."""

    def __init__(self, batch: Batch, share: Share) -> None:
        self.batch = batch
        self._share = share

    @cached_property
    def whole(self) -> list[MicroBatch]:
        """The batch's micro-batches. Every rank gets equally many; those it has none for are dummies."""
        return list(micro_batches(self.batch, range(len(self.batch)), self._share))

    def micro_batches(self, members: Sequence[int]) -> Iterable[MicroBatch]:
        """Of these sequences of the batch."""
        if len(members) == len(self.batch):
            return self.whole
        return micro_batches(self.batch, members, self._share)


def micro_batches(batch: Batch, members: Sequence[int], share: Share) -> Iterator[MicroBatch]:
    """This rank's micro-batches of ``members``; every rank gets equally many (empty ones are dummies)."""
    lengths, size = [batch.lengths[i] for i in members], share.sequence_parallel_size
    plan = plan_micro_batches(lengths, share.micro_batch_tokens * size, share.num_ranks // size)
    for group in plan[share.rank // size]:
        packed = build_packed(batch.trajectories, [members[i] for i in group])
        slots = action_slots(packed, batch.action_cu_seqlens)
        yield MicroBatch(packed, slots) if size == 1 else MicroBatch(*shard(packed, slots, share.rank % size, size))


def num_trained(mask: NDArray[np.bool_], action_cu_seqlens: Int64Array, members: Sequence[int]) -> int:
    """Actions of these sequences under ``mask [A]``, at least 1: what a mini-batch's losses are divided by."""
    cu = action_cu_seqlens
    return max(1, sum(int(mask[cu[i] : cu[i + 1]].sum()) for i in members))


def mini_batches(batch: Batch, num_mini_batches: int, *, seed: int, step: int, epoch: int) -> list[list[int]]:
    """M parts of the batch in an order drawn by (seed, step, epoch): a replayed step draws the same.

    Whole rollouts are drawn, so that a response weighs the same in the loss however many conversations it has.
    """
    drawn = derive_seed(seed, "mini_batches", step, epoch)
    return [batch.sequences_of(part) for part in split_mini_batches(len(batch.rollouts), num_mini_batches, drawn)]


def gather_flat(flat: Float64Array, sum_over_ranks: SumOverRanks) -> NDArray[np.float32]:
    """Whole array, ``[A]``, ``[S]`` or ``[2, A]``, from each rank's part: one rank wrote each, the others left 0.

    The sum is exact: float32 results in float64, plus zeros.
    """
    return sum_over_ranks(flat).astype(np.float32)

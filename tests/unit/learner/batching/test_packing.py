"""Packing loses nothing, mixes nothing and keeps its budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig.learner_samples import mixed_batch, trajectory
from vcppo.learner.batching.packing import (
    action_cu_seqlens,
    action_slots,
    behaviour_log_probs,
    build_packed,
    pack,
    plan_micro_batches,
    split_across_ranks,
    split_mini_batches,
)

lengths_lists = st.lists(st.integers(1, 100), max_size=40)


@settings(deadline=None)
@given(lengths_lists, st.integers(100, 300))
def test_pack_keeps_the_budget_and_every_sequence_once(lengths, budget):
    groups = pack(lengths, budget)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= budget for group in groups)
    # First-fit: no two groups could be one, or the later one's first sequence would have gone into the earlier.
    assert all(sum(lengths[i] for i in a) + lengths[b[0]] > budget for k, b in enumerate(groups) for a in groups[:k])


def test_pack_refuses_what_can_never_fit_and_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"101 tokens does not fit learner\.micro_batch_tokens=100"):
        pack([5, 101], 100)


@settings(deadline=None)
@given(lengths_lists, st.integers(1, 5))
def test_ranks_get_near_equal_tokens(lengths, num_ranks):
    shares = split_across_ranks(lengths, num_ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    tokens = [sum(lengths[i] for i in share) for share in shares]
    assert max(tokens) - min(tokens) <= max(lengths, default=0)


@settings(deadline=None)
@given(lengths_lists, st.integers(1, 4))
def test_the_plan_gives_every_rank_equally_many_micro_batches(lengths, num_ranks):
    plan = plan_micro_batches(lengths, 100, num_ranks)
    assert len(plan) == num_ranks and len({len(rank) for rank in plan}) == 1 and len(plan[0]) >= 1
    assert sorted(i for rank in plan for group in rank for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 100 for rank in plan for group in rank)
    assert plan == plan_micro_batches(lengths, 100, num_ranks)


def test_mini_batches_are_drawn_by_their_seed() -> None:
    parts = split_mini_batches(10, 4, seed=3)
    assert sorted(i for part in parts for i in part) == list(range(10)) and [len(p) for p in parts] == [3, 3, 2, 2]
    assert parts == split_mini_batches(10, 4, seed=3) != split_mini_batches(10, 4, seed=4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.permutations(range(7)))
def test_each_action_and_its_state_are_in_their_own_sequence(seed, order):
    batch = mixed_batch(seed)
    packed = build_packed(batch, order)
    bounds, action_bounds = packed.cu_seqlens.tolist(), packed.action_cu_seqlens.tolist()
    for s, index in enumerate(order):
        t, start, stop = batch[index], bounds[s], bounds[s + 1]
        tokens = [*t.prompt_token_ids.tolist(), *t.response_token_ids.tolist()]
        assert packed.token_ids[start:stop].tolist() == tokens
        assert packed.position_ids[start:stop].tolist() == list(range(len(tokens)))
        mine = slice(action_bounds[s], action_bounds[s + 1])
        assert packed.actions[mine].tolist() == t.response_token_ids[t.action_mask].tolist()
        assert all(start <= i < stop - 1 for i in packed.state_index[mine].tolist())
        assert (packed.action_index[mine] - start - len(t.prompt_token_ids)).tolist() == np.flatnonzero(
            t.action_mask
        ).tolist()
        assert packed.last_token_index[s] == stop - 1
    assert list(packed.lengths) == [b - a for a, b in itertools.pairwise(bounds)]


def test_a_pack_goes_to_cuda_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Control flow only: there is no CUDA here. Pinning has no effect on a tensor, so it may stand for the copy."""
    moved = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned = tensor.clone()
        pinned.is_pinned_here = True
        return pinned

    def to(tensor: torch.Tensor, device: str, *, non_blocking: bool = False) -> torch.Tensor:
        moved.append((getattr(tensor, "is_pinned_here", False), device, non_blocking))
        return tensor

    packed = build_packed(mixed_batch())
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    there = packed.to("cuda:0")
    assert moved == [(True, "cuda:0", True)] * 7
    assert torch.equal(there.token_ids, packed.token_ids) and there.lengths == packed.lengths
    moved.clear()
    packed.to("cpu")
    assert moved == [(False, "cpu", False)] * 7


def test_slots_read_and_write_the_batchs_flat_arrays() -> None:
    batch = mixed_batch()
    cu = action_cu_seqlens(batch)
    flat = behaviour_log_probs(batch)
    written = np.full(len(flat), np.nan, np.float32)
    for order in ([4, 0, 2], [1, 6], [], [5, 3]):
        packed = build_packed(batch, order)
        slots = action_slots(packed, cu)
        expected = [batch[i].behaviour_log_probs[batch[i].action_mask] for i in order]
        assert flat[slots].tolist() == (np.concatenate(expected).tolist() if expected else [])
        written[slots] = flat[slots]
    assert np.array_equal(written, flat)


def test_no_trajectory_makes_a_dummy_without_actions() -> None:
    packed = build_packed([], [])
    assert (packed.num_tokens, packed.num_actions, packed.sequence_index) == (1, 0, ())
    assert packed.action_cu_seqlens.tolist() == [0] and len(packed.last_token_index) == 0


def test_an_action_without_a_state_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"p9@generator-0\.0: its first token is an action"):
        build_packed([trajectory(np.random.default_rng(0), "p9", 0, 4)])

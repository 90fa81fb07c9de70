"""Turn-level GAE against its sums in Python floats; what it becomes at the two ends; borders from action masks."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.learner.algorithm.gae import decoupled_gae
from vcppo.learner.algorithm.turns import Turns, cut_into_segments, find_turns, turn_gae

Responses = list[list[int]]  # per response the lengths of its turns

RESPONSES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=4), min_size=1, max_size=5)


def layout(responses: Responses) -> tuple[np.ndarray, np.ndarray]:
    """``positions [A]`` with two tokens of other text after each turn, and ``action_cu_seqlens``."""
    positions, lengths = list[int](), [sum(turns) for turns in responses]
    for turns in responses:
        place = 0
        for turn in turns:
            positions += range(place, place + turn)
            place += turn + 2
    return np.array(positions, np.int64), np.cumsum([0, *lengths]).astype(np.int64)


def numbers(responses: Responses, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng, total = np.random.default_rng(seed), sum(map(sum, responses))
    return (
        rng.normal(size=total).astype(np.float32),
        rng.normal(size=total).astype(np.float32),
        rng.normal(size=len(responses)).astype(np.float32),
    )


@settings(max_examples=60, deadline=None)
@given(RESPONSES, st.integers(0, 10_000), st.sampled_from([0.0, 0.7, 0.95, 1.0]), st.sampled_from([0.0, 0.5, 1.0]))
def test_turns_are_the_steps_of_the_papers_sum(responses, seed, lambda_actor, lambda_critic):
    positions, cu = layout(responses)
    rewards, values, finals = numbers(responses, seed)
    turns = find_turns(positions, cu)
    got = turn_gae(rewards, values, finals, turns, lambda_actor=lambda_actor, lambda_critic=lambda_critic)
    for s, lengths in enumerate(responses):
        borders = cu[s] + np.cumsum([0, *lengths])
        rows = [[flat[a:b].tolist() for a, b in pairwise(borders)] for flat in (rewards, values)]
        advantages, _ = oracle.turn_gae(*rows, float(finals[s]), lambda_actor)
        _, targets = oracle.turn_gae(*rows, float(finals[s]), lambda_critic)
        here = slice(int(cu[s]), int(cu[s + 1]))
        np.testing.assert_allclose(got.advantages[here], np.concatenate(advantages), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got.value_targets[here], np.concatenate(targets), rtol=1e-5, atol=1e-5)


def test_turns_of_one_token_are_gae() -> None:
    responses = [[1] * 6, [1] * 3]
    positions, cu = layout(responses)
    rewards, values, finals = numbers(responses, 1)
    got = turn_gae(rewards, values, finals, find_turns(positions, cu), lambda_actor=0.9, lambda_critic=0.8)
    want = decoupled_gae(rewards, values, finals, cu, gamma=1.0, lambda_actor=0.9, lambda_critic=0.8)
    np.testing.assert_allclose(got.advantages, want.advantages, rtol=1e-6)
    np.testing.assert_allclose(got.value_targets, want.value_targets, rtol=1e-6)


def test_one_turn_is_the_outcome_less_the_value_before_it() -> None:
    """However long it is, and whatever lambda: nothing decays within a turn."""
    positions, cu = layout([[500]])
    rewards, values = np.zeros(500, np.float32), np.linspace(-1, 1, 500, dtype=np.float32)
    rewards[-1] = 0.1
    got = turn_gae(
        rewards, values, np.zeros(1, np.float32), find_turns(positions, cu), lambda_actor=0.5, lambda_critic=1.0
    )
    assert got.advantages.tolist() == [np.float32(0.1) - np.float32(-1)] * 500
    assert got.value_targets.tolist() == [np.float32(0.1)] * 500  # to the last bit


def test_borders_lie_where_other_text_stands_and_where_responses_begin() -> None:
    """The second response begins one place after the first one ended: still a turn of its own."""
    found = find_turns(np.array([0, 1, 4, 5, 6, 7, 9], np.int64), np.array([0, 5, 7], np.int64))
    assert (found.actions.tolist(), found.of_sequence.tolist()) == ([0, 2, 5, 6, 7], [0, 2, 4])
    same = find_turns(np.array([0, 1, 2], np.int64), np.array([0, 2, 3], np.int64))
    assert (same.actions.tolist(), same.of_sequence.tolist()) == ([0, 2, 3], [0, 1, 2])


def test_a_response_without_actions_has_no_turns() -> None:
    found = find_turns(np.array([0, 1], np.int64), np.array([0, 0, 2, 2], np.int64))
    assert found.of_sequence.tolist() == [0, 0, 1, 1]
    nothing = Turns(np.zeros(1, np.int64), np.zeros(2, np.int64))
    empty = np.zeros(0, np.float32)
    got = turn_gae(empty, empty, np.zeros(1, np.float32), nothing, lambda_actor=1.0, lambda_critic=1.0)
    assert got.advantages.size == got.value_targets.size == 0


def test_a_value_that_is_not_finite_is_refused() -> None:
    positions, cu = layout([[2, 2]])
    values = np.array([0, 0, np.nan, 0], np.float32)
    with pytest.raises(ValueError, match="sequence 0 has a reward or value that is not finite"):
        turn_gae(
            np.zeros(4, np.float32), values, np.zeros(1, np.float32), find_turns(positions, cu), lambda_actor=1.0,
            lambda_critic=1.0,
        )  # fmt: skip


def segments_of(turn: list[float], num_cutpoints: int, probability: float) -> list[int]:
    """Lengths of a turn's segments, token by token."""
    lengths, length, seen = list[int](), 0, 0
    for log_prob in turn:
        length += 1
        seen += math.exp(log_prob) <= probability
        if seen == num_cutpoints:
            lengths.append(length)
            length = seen = 0
    return lengths + [length] * (length > 0)


@settings(max_examples=100, deadline=None)
@given(RESPONSES, st.integers(0, 10_000), st.integers(1, 4), st.sampled_from([0.05, 0.35, 0.75, 1.0]))
def test_a_segment_ends_behind_its_last_cutpoint_or_with_its_turn(responses, seed, num_cutpoints, probability):
    positions, cu = layout(responses)
    turns = find_turns(positions, cu)
    log_probs = np.log(np.random.default_rng(seed).choice([0.1, 0.5, 0.9, 1.0], int(cu[-1]))).astype(np.float32)
    got = cut_into_segments(turns, log_probs, num_cutpoints=num_cutpoints, probability=probability)
    want, of_sequence = list[int](), [0]
    for s, lengths in enumerate(responses):
        for a, b in pairwise(cu[s] + np.cumsum([0, *lengths])):
            want += segments_of(log_probs[a:b].tolist(), num_cutpoints, probability)
        of_sequence.append(len(want))
    assert np.diff(got.actions).tolist() == want
    assert got.of_sequence.tolist() == of_sequence


def test_segments_of_nothing() -> None:
    turns = find_turns(np.zeros(0, np.int64), np.zeros(2, np.int64))
    got = cut_into_segments(turns, np.zeros(0, np.float32), num_cutpoints=5, probability=0.9)
    assert got.actions.tolist() == [0] and got.of_sequence.tolist() == [0, 0]

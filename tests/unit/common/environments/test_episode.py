"""A rollout of several turns: whatever the environment answers, the policy's tokens are those sampled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.environments.episode import Episode
from vcppo.common.records.trajectory import VersionSpan


class Turn(NamedTuple):
    token_ids: Any
    log_probs: Any
    version_spans: tuple[VersionSpan, ...]
    finish_reason: Any


def turn(tokens: list[int], version: int = 0, reason: str = "stop") -> Turn:
    ids = np.asarray(tokens, np.int32)
    spans = (VersionSpan(version, len(tokens)),)
    return Turn(ids, -1.0 - np.arange(len(tokens), dtype=np.float32), spans, reason)


TOKENS = st.lists(st.integers(0, 99), min_size=1, max_size=5)
ROUND = st.tuples(
    TOKENS, st.integers(0, 3), st.lists(st.integers(0, 99), max_size=6), st.floats(-2, 2, width=32), st.booleans(),
    st.sampled_from(["stop", "stop", "stop", "length"]),
)  # fmt: skip


@given(st.lists(ROUND, min_size=1, max_size=8), st.integers(1, 40), st.integers(1, 6))
def test_whatever_is_answered_the_policys_tokens_are_those_sampled(
    rounds: Any, max_tokens: int, max_turns: int
) -> None:
    episode, sampled, log_probs, versions, rewards = Episode(max_tokens, max_turns), [], [], [], []
    before: list[int] = []
    version = 0
    for tokens, newer, said, reward, done, reason in rounds:
        version += newer
        tokens = tokens[: episode.room]
        taken = turn(tokens, version, reason)
        episode.act(taken)
        sampled += tokens
        log_probs += taken.log_probs.tolist()
        versions += [version] * len(tokens)
        if episode.finish_reason is None:
            episode.observe(said, reward, done=done)
            rewards.append(reward)
        now = episode.token_ids.tolist()
        assert now[: len(before)] == before and now[len(before) :][: len(tokens)] == tokens
        before = now
        if episode.finish_reason is not None:
            break
    if episode.finish_reason is None:
        assert episode.room >= 1 and episode.num_turns < max_turns
        return
    found = episode.transcript()
    length = len(found.token_ids)
    assert length <= max_tokens and episode.num_turns <= max_turns
    assert len(found.action_mask) == len(found.log_probs) == length
    assert sum(span.count for span in found.version_spans) == length
    assert found.token_ids[found.action_mask].tolist() == sampled
    assert found.log_probs[found.action_mask].tolist() == log_probs
    assert not found.log_probs[~found.action_mask].any()
    by_token = np.repeat([s.version for s in found.version_spans], [s.count for s in found.version_spans])
    assert by_token[found.action_mask].tolist() == versions
    assert set(by_token.tolist()) == set(versions)  # the environment adds no version of its own
    assert all(a.version != b.version for a, b in zip(found.version_spans, found.version_spans[1:], strict=False))
    assert found.action_mask[-1]
    runs = int(np.diff(found.action_mask, prepend=False).sum() + 1) // 2
    assert len(found.turn_rewards) in ((runs,) if found.finish_reason == "stop" else (runs - 1, runs))
    assert math.fsum(found.turn_rewards) == pytest.approx(sum(rewards), abs=1e-9)


def test_each_turn_has_the_reward_of_its_answer() -> None:
    episode = Episode(20, 3)
    episode.act(turn([1, 2]))
    episode.observe([9, 9, 9], 0.25, done=False)
    episode.act(turn([3, 4, 5], 1))
    episode.observe([7], 1.0, done=True)
    found = episode.transcript()
    assert found.token_ids.tolist() == [1, 2, 9, 9, 9, 3, 4, 5]
    assert found.turn_rewards == (0.25, 1.0)
    assert found.version_spans == (VersionSpan(0, 5), VersionSpan(1, 3))
    assert found.finish_reason == "stop"


def test_turns_with_nothing_said_between_them_are_one_with_both_rewards() -> None:
    episode = Episode(20, 4)
    for said, reward, done in (([], 0.25, False), ([9], 0.5, False), ([], 1.0, False), ([], 2.0, True)):
        episode.act(turn([1, 2]))
        episode.observe(said, reward, done=done)
    found = episode.transcript()
    assert found.action_mask.tolist() == [True] * 4 + [False] + [True] * 4
    assert (episode.num_turns, found.turn_rewards) == (4, (0.75, 3.0))


@pytest.mark.parametrize(
    ("answer", "room", "turns"), [([9, 9], 4, 9), ([9, 9, 9], 4, 9), ([9], 20, 1)], ids=["full", "fuller", "turns"]
)
def test_without_room_or_turns_it_is_cut_after_the_last_action(answer: list[int], room: int, turns: int) -> None:
    episode = Episode(room, turns)
    episode.act(turn([1, 2]))
    episode.observe(answer, 0.5, done=False)
    found = episode.transcript()
    assert (found.finish_reason, found.token_ids.tolist(), found.turn_rewards) == ("length", [1, 2], (0.5,))


def test_a_turn_cut_by_its_length_ends_it_without_a_reward() -> None:
    episode = Episode(20, 3)
    episode.act(turn([1, 2], reason="length"))
    found = episode.transcript()
    assert (found.finish_reason, found.turn_rewards) == ("length", ())


def test_out_of_time_it_is_cut_with_the_reward_of_its_last_action() -> None:
    for done in (False, True):
        episode = Episode(20, 3)
        episode.act(turn([1, 2]))
        episode.observe([9], 1.0, done=done, is_late=True)
        found = episode.transcript()
        assert (found.finish_reason, found.token_ids.tolist()) == ("stop" if done else "length", [1, 2])
        assert found.turn_rewards == (1.0,)


def test_what_is_out_of_order_is_refused() -> None:
    episode = Episode(4, 3)
    with pytest.raises(ValueError, match="no answer was awaited"):
        episode.observe([1], 0.0, done=False)
    with pytest.raises(ValueError, match="room for 4"):
        episode.act(turn([1] * 5))
    with pytest.raises(ValueError, match="broken off"):
        episode.act(turn([1], reason="abort"))
    with pytest.raises(ValueError, match="do not cover"):
        episode.act(turn([1])._replace(version_spans=(VersionSpan(0, 2),)))
    episode.act(turn([1]))
    with pytest.raises(ValueError, match="not the policy's turn"):
        episode.act(turn([1]))
    with pytest.raises(ValueError, match="not ended"):
        episode.transcript()

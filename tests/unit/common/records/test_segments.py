"""A rollout of several conversations comes apart into trajectories, and nothing of it is lost or doubled."""

from __future__ import annotations

from hypothesis import given

from tests.unit.common.records.test_wire import a_segment, a_trajectory, trajectories
from vcppo.common.records.ids import prompt_of
from vcppo.common.records.segments import split
from vcppo.common.records.trajectory import Trajectory, validate


def test_one_conversation_is_the_trajectory_itself() -> None:
    found = a_trajectory()
    assert split(found) == [found]


def test_what_its_trajectories_share_and_what_they_do_not() -> None:
    whole = a_trajectory(
        reward=0.25, components={"base": 0.25}, turn_rewards=(0.25,), segments=(a_segment(), a_segment())
    )
    own, *others = split(whole)
    assert [each.id for each in (own, *others)] == ["rl-0@g.0", "rl-0@g.0#1", "rl-0@g.0#2"]
    for each in (own, *others):
        validate(each)
        assert each.segments == () and prompt_of(each.id) == each.prompt_id == "rl-0"
        assert (each.group_id, each.sample_index, each.outcome, each.issue_version) == ("rl-0", 0, "correct", 3)
        assert (each.reward, each.components) == (0.25, {"base": 0.25})
    assert (own.timings, own.turn_rewards) == ({"generate": 0.5}, (0.25,))
    for each in others:
        assert (each.timings, each.turn_rewards, each.finish_reason) == ({}, (), "length")
        assert (each.oldest_version, each.num_tokens) == (1, 8)
    assert (own.oldest_version, whole.oldest_version) == (3, 1)


@given(trajectories())
def test_every_action_is_in_one_of_them(whole: Trajectory) -> None:
    made = split(whole)
    assert len({each.id for each in made}) == len(made) == len(whole.conversations)
    assert sum(int(each.action_mask.sum()) for each in made) == whole.num_actions
    assert min(each.oldest_version for each in made) == whole.oldest_version
    for each, conversation in zip(made, whole.conversations, strict=True):
        assert each.response_token_ids is conversation.response_token_ids
        assert each.prompt_token_ids is conversation.prompt_token_ids

"""What this run's config rules out does not reach the learner; what it can make does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Segment, Trajectory, VersionSpan
from vcppo.common.records.wire import WireError, decode_trajectory, encode_trajectory
from vcppo.common.rewards.reward_rule import RewardRule
from vcppo.learner.buffer.door import MIN_LOG_PROB, Door

NUM = 6
GOOD = Trajectory(
    id="rl-00000001-0@generator-0.1",
    prompt_id="rl-00000001-0",
    group_id="rl-00000001",
    sample_index=0,
    task="t",
    prompt_token_ids=np.arange(3, dtype=np.int32),
    response_token_ids=np.arange(NUM, dtype=np.int32),
    action_mask=np.ones(NUM, np.bool_),
    behaviour_log_probs=np.full(NUM, -1.0, np.float32),
    version_spans=(VersionSpan(0, NUM),),
    finish_reason="stop",
    reward=1.0,
    outcome="correct",
    generator_id="generator-0",
    issue_version=0,
)
RULE = RewardRule(correct=1.0, wrong=-0.25, low=-0.25, high=1.0, max_response_tokens=NUM)
DOOR = Door(rewards=RULE, max_response_tokens=NUM, max_staleness=2)
GRADED = RewardRule(
    low=-2.5, high=2.0, weights={"brevity": 0.5, "format": 0.2}, expected=frozenset({"brevity", "format"}),
    max_response_tokens=NUM, soft_overlong_cache=2, length_cost=0.0625,
)  # fmt: skip
SHAPING = {"soft_overlong": -1.0, "length_cost": -0.375}
ALL = {"base": 0.5, "brevity": 1.0, "format": 0.0, "effort": 7.0, **SHAPING}


def log_probs(least: float) -> dict[str, Any]:
    return {"behaviour_log_probs": np.array([*[-1.0] * (NUM - 1), least], np.float32)}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"outcome": "wrong", "reward": -0.25},
        {"outcome": "unparsable", "reward": -0.25},
        {"outcome": "timeout", "reward": -0.25},
        {"outcome": "crash", "reward": -0.25},
        {"finish_reason": "length"},
        log_probs(0.0),
        log_probs(-103.0),  # about the rarest token that float32 can draw
    ],
)
def test_what_the_run_can_make_passes(changes: dict[str, Any]) -> None:
    DOOR.check(replace(GOOD, **changes))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reward": 1e5}, r"^reward: 100000.0 for outcome 'correct', task.reward_correct = 1.0$"),
        ({"reward": -0.25}, r"^reward: -0.25 for outcome 'correct', task.reward_correct = 1.0$"),
        ({"outcome": "wrong"}, r"^reward: 1.0 for outcome 'wrong', task.reward_wrong = -0.25$"),
        ({"outcome": "timeout", "reward": 0.0}, r"^reward: 0.0 for outcome 'timeout', task.reward_wrong = -0.25$"),
        ({"finish_reason": "abort"}, r"^finish_reason: 'abort'"),
        (log_probs(-1e9), r"^behaviour_log_probs: -1e\+09: nobody samples"),
        (log_probs(MIN_LOG_PROB - 1), r"^behaviour_log_probs: -111"),
    ],
)
def test_what_it_can_not_make_is_refused_by_field_value_and_setting(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        DOOR.check(replace(GOOD, **changes))


@pytest.mark.parametrize("oldest", [3, 5, 9])
def test_versions_that_the_run_has_had_pass(oldest: int) -> None:
    spans = (VersionSpan(oldest, 2), VersionSpan(9, NUM - 2))
    found = replace(GOOD, issue_version=5, version_spans=spans)
    DOOR.check(found)
    DOOR.check_newest(found, 9)
    DOOR.check_newest(found, 8)  # a broadcast is under way: generators go on before the learner has said so


def test_the_first_version_passes_before_it_is_announced() -> None:
    DOOR.check_newest(GOOD, None)


def test_a_token_too_old_for_its_prompt_is_refused() -> None:
    spans = (VersionSpan(6, 3), VersionSpan(2, NUM - 3))
    with pytest.raises(WireError, match=r"^version_spans: a token of version 2, for a prompt issued at 5: rl.max_st"):
        DOOR.check(replace(GOOD, issue_version=5, version_spans=spans))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"version_spans": (VersionSpan(0, 1), VersionSpan(7, NUM - 1))}, r"^version_spans: version 7 does not exist"),
        ({"issue_version": 2**40}, r"^issue_version: version 1099511627776 does not exist yet: the newest is 6$"),
    ],
)
def test_versions_that_do_not_exist_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        DOOR.check_newest(replace(GOOD, **changes), 5)


def test_a_response_past_the_limit_is_refused() -> None:
    with pytest.raises(WireError, match=r"^response_token_ids: 6 tokens, sampling.max_response_tokens = 5$"):
        replace(DOOR, max_response_tokens=5).check(GOOD)


def test_the_bounds_are_the_configs() -> None:
    config = VcppoConfig.model_validate(
        {
            "model": {"path": "m"},
            "task": {"reward_correct": 2.0, "reward_wrong": 0.5},
            "sampling": {"max_response_tokens": 77},
        }
    )
    assert Door.of(config) == Door(RewardRule(2.0, 0.5, 0.5, 2.0, max_response_tokens=77), 77, config.rl.max_staleness)


@pytest.mark.parametrize(
    ("outcome", "reward", "components"),
    [
        ("wrong", -0.375, ALL),
        ("correct", -0.375, ALL),  # the outcome is for accuracy: the number is the verdict's
        ("correct", 0.325, {"brevity": 1.0, "format": 1.0, **SHAPING}),
        ("timeout", -1.0 - 1.375, SHAPING),
        ("crash", -1.0 - 1.375, SHAPING),
    ],
)
def test_graded_rewards_that_the_rule_can_make_pass(outcome: str, reward: float, components: dict[str, float]) -> None:
    found = replace(GOOD, outcome=outcome, reward=reward, components=components)  # type: ignore[arg-type]
    replace(DOOR, rewards=GRADED).check(decode_trajectory(encode_trajectory(found)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"reward": -0.374}, r"^reward: -0.374 for outcome 'wrong', its components and the settings under task make "),
        (
            {"components": {**ALL, "base": 9.0}, "reward": 8.125},
            r"^reward: 8.125 is beyond task.reward_range = \[-2.5, 2",
        ),
        ({"components": {**ALL, "base": 0.6}}, r"^reward: -0.375 for outcome 'wrong'"),
        ({"components": {**ALL, "length_cost": 0.0}}, r"^components.length_cost: 0.0 for 6 tokens, .* make -0.375$"),
        ({"components": {"brevity": 1.0, "format": 1.0}}, r"^components.soft_overlong: None for 6 tokens"),
        ({"components": {"base": 0.5, **SHAPING}}, r"^components: brevity, format missing with outcome 'wrong'$"),
        ({"components": {**ALL, "accuracy": 1.0}}, r"^components: 'accuracy' is a name of vcppo's own"),
        ({"components": {**ALL, "a/b": 1.0}}, r"^components: 'a/b' is no name"),
    ],
)
def test_graded_rewards_that_it_can_not_make_are_refused(changes: dict[str, Any], text: str) -> None:
    found = replace(GOOD, outcome="wrong", reward=-0.375, components=ALL)
    replace(DOOR, rewards=GRADED).check(found)
    with pytest.raises(WireError, match=text):
        replace(DOOR, rewards=GRADED).check(replace(found, **changes))


OF_TURNS = {
    "action_mask": np.array([True, True, False, False, True, True]), "outcome": "wrong", "reward": 0.75,
    "components": {"base": 0.75}, "turn_rewards": (-0.125, 0.875),
}  # fmt: skip


def test_rewards_of_turns_that_sum_to_the_base_pass() -> None:
    found = replace(GOOD, **OF_TURNS)  # type: ignore[arg-type]
    DOOR.check(decode_trajectory(encode_trajectory(found)))
    DOOR.check(replace(found, turn_rewards=(0.5, 0.25)))
    DOOR.check(replace(found, turn_rewards=(0.75,), finish_reason="length"))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"turn_rewards": (0.125, 0.875)}, r"^turn_rewards: they sum to 1.0, the reward's base is 0.75$"),
        ({"components": {}, "reward": -0.25}, r"^turn_rewards: they sum to 0.75, the reward's base is None$"),
        ({"turn_rewards": (-2.0, 2.75)}, r"^reward: 2.75 from turn 2 on is beyond task.reward_range = \[-0.25, 1\]$"),
    ],
)
def test_rewards_of_turns_that_the_run_can_not_make_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        DOOR.check(replace(GOOD, **OF_TURNS | changes))


def test_a_run_without_graded_settings_takes_a_graded_verdict_within_its_range() -> None:
    DOOR.check(replace(GOOD, outcome="wrong", reward=0.75, components={"base": 0.75, "steps": 3.0}))
    with pytest.raises(WireError, match=r"^components.length_cost: -1.0 for 6 tokens, the settings .* make None$"):
        DOOR.check(replace(GOOD, reward=0.0, components={"length_cost": -1.0}))


OTHER = Segment(
    np.arange(2, dtype=np.int32), np.arange(4, dtype=np.int32), np.ones(4, np.bool_), np.full(4, -1.0, np.float32),
    (VersionSpan(0, 4),), "length",
)  # fmt: skip


def test_segments_that_the_run_can_make_pass() -> None:
    """The shaping goes by the longest response, wherever it stands."""
    DOOR.check(replace(GOOD, segments=(OTHER, OTHER)))
    longest = replace(GOOD, outcome="wrong", reward=-0.375, components=ALL, segments=(OTHER,))
    replace(DOOR, rewards=GRADED).check(decode_trajectory(encode_trajectory(longest)))
    short = OTHER._asdict() | {"finish_reason": "stop"}
    (whole,) = (Segment(*(getattr(GOOD, name) for name in Segment._fields)),)
    replace(DOOR, rewards=GRADED).check(replace(longest, **short, segments=(whole,)))
    with pytest.raises(WireError, match=r"^components.soft_overlong: -1.0 for 4 tokens"):
        replace(DOOR, rewards=GRADED).check(replace(longest, **short, segments=(OTHER,)))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"finish_reason": "abort"}, r"^segments\[1\].finish_reason: 'abort'"),
        (
            {"behaviour_log_probs": np.full(4, -1e9, np.float32)},
            r"^segments\[1\].behaviour_log_probs: -1e\+09: nobody samples",
        ),
        ({"response_token_ids": np.arange(7, dtype=np.int32)}, r"^segments\[1\].response_token_ids: 7 tokens, sampl"),
    ],
)
def test_a_segment_that_the_run_can_not_make_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        DOOR.check(replace(GOOD, segments=(OTHER, OTHER._replace(**changes))))


def test_versions_of_segments_count_too() -> None:
    found = replace(GOOD, issue_version=5, version_spans=(VersionSpan(5, NUM),))
    DOOR.check(replace(found, segments=(OTHER._replace(version_spans=(VersionSpan(3, 4),)),)))
    with pytest.raises(WireError, match=r"^version_spans: a token of version 2, for a prompt issued at 5"):
        DOOR.check(replace(found, segments=(OTHER._replace(version_spans=(VersionSpan(2, 4),)),)))
    with pytest.raises(WireError, match=r"^version_spans: version 7 does not exist yet: the newest is 6$"):
        DOOR.check_newest(replace(found, segments=(OTHER._replace(version_spans=(VersionSpan(7, 4),)),)), 5)

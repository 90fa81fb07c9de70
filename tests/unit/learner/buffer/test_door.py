"""What this run's config rules out does not reach the learner; what it can make does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Trajectory, VersionSpan
from vcppo.common.records.wire import WireError
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
DOOR = Door(reward_correct=1.0, reward_wrong=-0.25, max_response_tokens=NUM)


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
        ({"reward": 1e5}, r"^reward: 100000 for outcome 'correct', task.reward_correct = 1$"),
        ({"reward": -0.25}, r"^reward: -0.25 for outcome 'correct', task.reward_correct = 1$"),
        ({"outcome": "wrong"}, r"^reward: 1 for outcome 'wrong', task.reward_wrong = -0.25$"),
        ({"outcome": "timeout", "reward": 0.0}, r"^reward: 0 for outcome 'timeout', task.reward_wrong = -0.25$"),
        ({"finish_reason": "abort"}, r"^finish_reason: 'abort'"),
        (log_probs(-1e9), r"^behaviour_log_probs: -1e\+09: nobody samples"),
        (log_probs(MIN_LOG_PROB - 1), r"^behaviour_log_probs: -111"),
    ],
)
def test_what_it_can_not_make_is_refused_by_field_value_and_setting(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(WireError, match=text):
        DOOR.check(replace(GOOD, **changes))


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
    assert Door.of(config) == Door(2.0, 0.5, 77)

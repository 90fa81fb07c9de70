"""From a rollout of two turns on the wire to its advantages: what the environment says between them changes nothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest

from vcppo.common.config import AlgorithmConfig
from vcppo.common.environments.episode import Episode, Transcript
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.rewards.reward_rule import Score
from vcppo.generator.rollout.finished import Finished
from vcppo.learner.batching.batch import Batch
from vcppo.learner.batching.packing import action_slots, build_packed
from vcppo.learner.rl.estimates import estimate
from vcppo.learner.rl.step_metrics import _turns


class Turn(NamedTuple):
    token_ids: Any
    log_probs: Any
    version_spans: tuple[VersionSpan, ...]
    finish_reason: Any


def turn(version: int) -> Turn:
    return Turn(np.asarray([5, 6], np.int32), np.full(2, -0.7, np.float32), (VersionSpan(version, 2),), "stop")


def rollout(num_said: int) -> Transcript:
    episode = Episode(1000, 4)
    episode.act(turn(0))
    episode.observe([9] * num_said, 0.0, done=False)
    episode.act(turn(1))
    episode.observe([], 1.0, done=True)
    return episode.transcript()


def on_the_wire(made: Transcript, number: int) -> bytes:
    prompt = Prompt(f"rl-0000000{number}-0", "g", 0, "t", np.arange(3, dtype=np.int32), {}, 0, 0, "rl", 1000)
    score = Score("correct", 1.0, {"base": 1.0})
    return encode_trajectory(Finished(made, score, {}).trajectory(prompt, f"{prompt.id}@generator-0.0", "generator-0"))


@pytest.mark.parametrize("num_said", [10, 50, 500])
def test_what_a_tool_says_takes_no_part_in_lambda(num_said: int) -> None:
    """By hand: deltas 0, 0, 0, 1 - .5, so .5 at the end and .5 · .95² two actions before it."""
    batch = Batch.decode([on_the_wire(rollout(count), i) for i, count in enumerate((num_said, 1))], 1)
    assert batch.num_actions == 8 and batch.turns.of_sequence.tolist() == [0, 2, 4]
    values, last = np.full(8, 0.5, np.float32), np.full(2, 0.5, np.float32)
    found = estimate(
        batch, values, last, batch.behaviour_log_probs, AlgorithmConfig(), lambda_actor=0.95, lambda_critic=1.0
    )
    assert found.raw_advantages[:4] == pytest.approx([0.428688, 0.45125, 0.475, 0.5], abs=1e-6)
    assert (found.raw_advantages[:4] == found.raw_advantages[4:]).all()
    assert found.value_targets.tolist() == [1.0] * 8
    assert batch.behaviour_log_probs.tolist() == pytest.approx([-0.7] * 8)
    packed = build_packed(batch.trajectories, [0, 1])
    assert action_slots(packed, batch.action_cu_seqlens).tolist() == list(range(8))
    assert batch.trajectories[0].num_turns == 2 and batch.trajectories[0].num_tokens == 3 + 4 + num_said


def test_the_turns_of_a_batch_are_counted() -> None:
    batch = Batch.decode([on_the_wire(rollout(count), i) for i, count in enumerate((3, 5))], 1)
    assert _turns(batch) == {}  # of a task of one turn nothing is said, however its tokens are masked
    for trajectory, seconds in zip(batch.trajectories, (1.0, 2.0), strict=True):
        trajectory.timings["environment"] = seconds
    assert _turns(batch) == {
        "turns/mean": 2.0, "turns/max": 2, "turns/masked_fraction": 0.5, "turns/environment_seconds": 1.5,
        "turns/reward_by_turn": [0.0, 1.0],
    }  # fmt: skip
    batch.trajectories[0].timings.update(tools=0.5, tool_calls=3.0, tool_errors=1.0)
    found = _turns(batch)  # of all rollouts, those that called nothing too
    assert {name: found[f"turns/tool_{name}"] for name in ("calls", "errors", "seconds")} == {
        "calls": 1.5, "errors": 0.5, "seconds": 0.25,
    }  # fmt: skip

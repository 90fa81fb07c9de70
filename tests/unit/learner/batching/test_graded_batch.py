"""Graded rewards in the learner: they reach the arrays that are trained on, and each part has its curve."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import AlgorithmConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.telemetry.metric_names import series_of
from vcppo.learner.batching.batch import Batch
from vcppo.learner.critic_quality.signal_by_distance import reward_signal
from vcppo.learner.rl.estimates import estimate
from vcppo.learner.rl.step_metrics import step_metrics
from vcppo.learner.rl.update_stats import UpdateStats
from vcppo.learner.value_pretraining.recording_stats import count_responses
from vcppo.learner.value_pretraining.stage import _is_graded

REWARDS = (0.5, -0.25, 0.125, 2.0, -1.0, 0.0, 0.75)


def graded() -> list[Trajectory]:
    """Seven responses, no two of one reward; every second has a part more."""
    return [
        replace(each, reward=reward, components={"brevity": reward, **({"steps": i} if i % 2 else {})}, group_id="g")
        for i, (each, reward) in enumerate(zip(mixed_batch(seed=3), REWARDS, strict=True))
    ]


@pytest.mark.parametrize("estimator", ["gae", "group_mean", "group_centred", "leave_one_out", "reinforce_plus_plus"])
def test_any_reward_is_the_return_that_every_estimator_sees(estimator: str) -> None:
    batch = Batch.decode([encode_trajectory(each) for each in graded()], version=9)
    zeros = np.zeros(batch.num_actions, np.float32)
    found = estimate(
        batch, values=zeros, last_values=np.zeros(len(batch), np.float32), old_log_probs=zeros, lambda_actor=1.0,
        algorithm=AlgorithmConfig(advantage_estimator=estimator, whiten_advantages=False), lambda_critic=1.0,  # type: ignore[arg-type]
    )  # fmt: skip
    first = batch.action_cu_seqlens[:-1]
    np.testing.assert_array_equal(found.returns[first], np.float32(REWARDS))
    if estimator == "gae":
        np.testing.assert_allclose(found.raw_advantages[first], REWARDS, rtol=1e-6)
    else:
        assert list(np.argsort(found.raw_advantages[first])) == list(np.argsort(REWARDS))
    metrics = step_metrics(batch, found, UpdateStats(1), {"step": 1.0}, has_critic=estimator == "gae")
    assert metrics["reward/mean"] == pytest.approx(np.mean(REWARDS))
    assert metrics["reward/brevity"] == pytest.approx(np.mean(REWARDS))
    assert metrics["reward/steps"] == 3.0  # of the three that have it
    assert metrics["reward/accuracy"] == sum(each.outcome == "correct" for each in batch.trajectories) / 7


def test_a_part_is_a_label_in_prometheus_and_the_old_names_stay() -> None:
    assert series_of("reward/brevity")[1:] == ("vcppo_reward_component", "brevity")
    assert series_of("reward/mean")[1:] == ("vcppo_reward_mean", "")
    assert series_of("vp/reward")[1:] == ("vcppo_vp_reward", "")
    assert series_of("vp/reward/brevity")[1:] == ("vcppo_vp_reward_component", "brevity")


def test_the_recording_tells_parts_apart() -> None:
    metrics = count_responses(graded()).metrics()
    assert metrics["vp/reward/steps"] == 3.0 and metrics["vp/reward"] == pytest.approx(np.mean(REWARDS))


def test_rewards_within_one_kind_of_outcome_are_graded() -> None:
    """Right and wrong are counted for the gate only where they are the rewards' two kinds."""
    by_outcome = [replace(each, reward=1.0 if each.outcome == "correct" else -1.0) for each in graded()]
    assert not _is_graded(by_outcome)
    all_wrong = [replace(each, outcome="wrong", reward=float(i % 2)) for i, each in enumerate(graded())]
    assert _is_graded(all_wrong)  # two rewards, but not those of right and wrong


def test_right_and_wrong_of_one_mean_reward_have_no_signal() -> None:
    cu, rewards = np.array([0, 2, 4], np.int64), np.array([0.5, 0.5], np.float32)
    found = reward_signal(np.zeros(4, np.float32), rewards, np.array([True, False]), cu)
    assert all(each is None for signal in found.values() for each in signal)

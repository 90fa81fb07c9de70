"""Rewards of turns in the learner, against a literal float64 transcription; all on the last turn they change no bit."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import AlgorithmConfig, VcppoConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.learner.batching.batch import Batch
from vcppo.learner.batching.turn_rewards import mean_by_turn
from vcppo.learner.rl.estimates import Estimates, estimate
from vcppo.learner.value_pretraining.critic_pretrainer import Part

SHAPING = -0.0625


def rollouts(seed: int) -> list[Trajectory]:
    """Seven responses of one turn to a dozen, one of them cut with its last turn unanswered, each with some shaping."""
    rng = np.random.default_rng(seed)
    found = []
    for trajectory in mixed_batch(seed=seed, tool_text=0.4):
        unanswered = trajectory.finish_reason == "length"
        rewards = tuple(rng.normal(size=trajectory.num_turns - unanswered).tolist())
        base = math.fsum(rewards)
        parts = {"base": base, "length_cost": SHAPING}
        group = f"g{len(found) % 3}"
        log_probs = np.minimum(trajectory.behaviour_log_probs, 0)
        found.append(
            replace(
                trajectory,
                reward=base + SHAPING,
                components=parts,
                turn_rewards=rewards,
                group_id=group,
                behaviour_log_probs=log_probs,
            )
        )
    return found


def batch_of(trajectories: list[Trajectory]) -> Batch:
    """Over the wire."""
    return Batch.decode([encode_trajectory(each) for each in trajectories], version=0)


def estimates(batch: Batch, seed: int, **algorithm: Any) -> Estimates:
    rng, chosen = np.random.default_rng(seed), AlgorithmConfig(**{"whiten_advantages": False} | algorithm)
    return estimate(
        batch, rng.normal(size=batch.num_actions).astype(np.float32), rng.normal(size=len(batch)).astype(np.float32),
        batch.behaviour_log_probs, chosen, lambda_actor=chosen.lambda_actor, lambda_critic=chosen.lambda_critic,
    )  # fmt: skip


def by_turn(trajectory: Trajectory, per_action: list[float]) -> list[list[float]]:
    """The numbers of a trajectory's actions, a list a turn: token by token, as a person would."""
    left, turns, was_action = list(per_action), list[list[float]](), False
    for is_action in trajectory.action_mask.tolist():
        if is_action:
            if not was_action:
                turns.append([])
            turns[-1].append(left.pop(0))
        was_action = is_action
    return turns


def flat(turns: list[list[float]]) -> list[float]:
    return [number for turn in turns for number in turn]


def rewards_by_turn(trajectory: Trajectory, *, is_bootstrapped: bool) -> list[list[float]]:
    """Each turn's on its last action; on the very last one also what is no turn's. Of a cut that is bootstrapped what
    stands there was not seen."""
    turns = [[0.0] * len(turn) for turn in by_turn(trajectory, [0.0] * int(trajectory.action_mask.sum()))]
    for turn, reward in zip(turns, trajectory.turn_rewards, strict=False):
        turn[-1] = reward
    turns[-1][-1] = 0.0 if is_bootstrapped else turns[-1][-1] + SHAPING
    return turns


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 1000), st.sampled_from(["terminal", "bootstrap"]), st.sampled_from(["token", "turn"]),
    st.sampled_from([1.0, 0.97]), st.sampled_from([1.0, 0.9]),
)  # fmt: skip
def test_gae_takes_each_reward_where_it_was_given(seed, truncation, level, gamma, lambda_critic):
    gamma = 1.0 if level == "turn" else gamma
    batch = batch_of(rollouts(seed))
    got = estimates(batch, seed, truncation=truncation, advantage_level=level, gamma=gamma, lambda_critic=lambda_critic)
    cu = batch.action_cu_seqlens
    for i, trajectory in enumerate(batch.trajectories):
        here = slice(int(cu[i]), int(cu[i + 1]))
        cut = trajectory.finish_reason == "length" and truncation == "bootstrap"
        final = float(got.last_values[i]) if cut else 0.0
        rewards = rewards_by_turn(trajectory, is_bootstrapped=cut)
        values = by_turn(trajectory, got.values[here].astype(np.float64).tolist())
        if level == "turn":
            advantages, _ = oracle.turn_gae(rewards, values, final, 0.95)
            _, targets = oracle.turn_gae(rewards, values, final, lambda_critic)
            want = flat(advantages), flat(targets)
        else:
            all_of_it = flat(rewards), flat(values), final
            want = oracle.gae(*all_of_it, 0.95, gamma), oracle.value_targets(*all_of_it, lambda_critic, gamma)
        np.testing.assert_allclose(got.raw_advantages[here], want[0], atol=2e-5)
        np.testing.assert_allclose(got.value_targets[here], want[1], atol=2e-5)
        given_rewards = flat(rewards_by_turn(trajectory, is_bootstrapped=False))
        returns = [
            math.fsum(gamma ** (k - t) * given_rewards[k] for k in range(t, len(given_rewards)))
            for t in range(len(given_rewards))
        ]
        np.testing.assert_allclose(got.returns[here], returns, atol=2e-5)


@pytest.mark.parametrize("gamma", [1.0, 0.97])
def test_value_pretraining_has_the_same_returns(gamma: float) -> None:
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "algorithm": {"gamma": gamma}})
    found = rollouts(3)
    part = Part.of(batch_of(found).trajectories, config)
    assert part.returns.tobytes() == estimates(batch_of(found), 3, gamma=gamma).returns.tobytes()
    first = part.batch.action_cu_seqlens[:-1]
    if gamma == 1.0:
        np.testing.assert_allclose(part.returns[first], [each.reward for each in found], atol=1e-6)


def test_targets_at_lambda_1_are_the_rewards_that_are_left_to_the_last_bit() -> None:
    """What RL trains the critic on is what value pretraining does: no V + (R - V)."""
    got = estimates(batch_of(rollouts(4)), 4, lambda_critic=1.0)
    assert got.value_targets.tobytes() == got.returns.tobytes()


GROUPS = ["group_mean", "group_centred", "leave_one_out", "reinforce_plus_plus", "reinforce_plus_plus_baseline"]


@pytest.mark.parametrize("estimator", GROUPS)
def test_estimators_of_outcomes_take_the_sum(estimator: str) -> None:
    found = rollouts(5)
    without = [replace(each, turn_rewards=()) for each in found]
    got, want = (estimates(batch_of(each), 5, advantage_estimator=estimator, gamma=0.97) for each in (found, without))
    assert got.raw_advantages.tobytes() == want.raw_advantages.tobytes() and got.raw_advantages.any()


@pytest.mark.parametrize("truncation", ["terminal", "bootstrap", "mask"])
@pytest.mark.parametrize("level", ["token", "turn"])
def test_all_on_the_last_turn_no_bit_changes(level: str, truncation: str) -> None:
    late = []
    for each in rollouts(6):
        rewards = [0.0] * len(each.turn_rewards)
        if each.finish_reason == "length":
            rewards, base = rewards + [each.components["base"]], each.components["base"]  # answered, then cut
        else:
            base = each.components["base"]
            rewards[-1] = base
        late.append(replace(each, turn_rewards=tuple(rewards), components={**each.components, "base": base}))
    got, want = (
        estimates(batch_of(each), 6, advantage_level=level, truncation=truncation, whiten_advantages=True)
        for each in (late, [replace(each, turn_rewards=()) for each in late])
    )
    assert max(len(each.turn_rewards) for each in late) > 3
    for field in fields(Estimates):
        mine, before = getattr(got, field.name), getattr(want, field.name)
        assert mine is before is None or mine.tobytes() == before.tobytes(), field.name


def test_a_response_does_not_feel_its_neighbours() -> None:
    """Every rank has the whole batch, and packs are cut from what is worked out here."""
    found = rollouts(7)
    whole = estimates(batch_of(found), 7)
    cu = batch_of(found).action_cu_seqlens
    for i, each in enumerate(found):
        here = slice(int(cu[i]), int(cu[i + 1]))
        alone = estimate(
            batch_of([each]), whole.values[here], whole.last_values[i : i + 1], whole.old_log_probs[here],
            AlgorithmConfig(whiten_advantages=False), lambda_actor=0.95, lambda_critic=1.0,
        )  # fmt: skip
        assert alone.raw_advantages.tobytes() == whole.raw_advantages[here].tobytes()
        assert alone.value_targets.tobytes() == whole.value_targets[here].tobytes()


def test_the_mean_of_a_turn_is_over_those_that_have_it() -> None:
    found = [replace(rollouts(8)[0], turn_rewards=each) for each in ((1.0, 2.0), (2.0,), ())]
    assert mean_by_turn(found) == [1.5, 2.0] and mean_by_turn(found[2:]) == []

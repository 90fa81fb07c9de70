"""Estimates as the loop asks for them: KL in the reward, REINFORCE++, turns, against the oracle's float64 sums."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import AlgorithmConfig
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.rl.estimates import Estimates, estimate
from vcppo.learner.rl.step_metrics import step_metrics
from vcppo.learner.rl.update_stats import UpdateStats

BETA = 0.3


def batch_of(seed: int, *, tool_text: float = 0.3) -> Batch:
    """Seven responses to three prompts, one of them cut off."""
    found = mixed_batch(seed=seed, tool_text=tool_text)
    return Batch([replace(each, group_id=f"g{i % 3}") for i, each in enumerate(found)], version=0)


def numbers(batch: Batch, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    old = -rng.uniform(0.1, 3, batch.num_actions)
    return {
        "values": rng.normal(size=batch.num_actions).astype(np.float32),
        "last_values": rng.normal(size=len(batch)).astype(np.float32),
        "old_log_probs": old.astype(np.float32),
        "reference_log_probs": (old + rng.normal(0, 0.4, len(old))).astype(np.float32),
    }


def estimates(batch: Batch, given_numbers: dict[str, np.ndarray], **algorithm: Any) -> Estimates:
    chosen = AlgorithmConfig(**algorithm)
    return estimate(
        batch, algorithm=chosen, lambda_actor=chosen.lambda_actor, lambda_critic=chosen.lambda_critic, **given_numbers
    )


def rows(batch: Batch, flat: np.ndarray) -> list[list[float]]:
    cu = batch.action_cu_seqlens
    return [flat[cu[i] : cu[i + 1]].astype(np.float64).tolist() for i in range(len(batch))]


def kl_rows(batch: Batch, given_numbers: dict[str, np.ndarray], estimator: str) -> list[list[float]]:
    policy, reference = (rows(batch, given_numbers[name]) for name in ("old_log_probs", "reference_log_probs"))
    return [
        [oracle.kl_estimate(p, q, estimator) for p, q in zip(*both, strict=True)]
        for both in zip(policy, reference, strict=True)
    ]


def outcome_rewards(length: int, outcome: float) -> list[float]:
    return [0.0] * (length - 1) + [outcome]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 1000),
    st.sampled_from(["k1", "k2", "k3"]),
    st.sampled_from(["terminal", "bootstrap"]),
    st.sampled_from([1.0, 0.97]),
)
def test_kl_in_the_reward_goes_through_gae_token_by_token(seed, estimator, truncation, gamma):
    batch = batch_of(seed)
    given_numbers = numbers(batch, seed)
    got = estimates(
        batch, given_numbers, kl_in="reward", kl_estimator=estimator, kl_coefficient=BETA, truncation=truncation,
        gamma=gamma, whiten_advantages=False,
    )  # fmt: skip
    assert got.reference_log_probs is None  # in the reward, so not in the loss as well
    for i, (kl, values) in enumerate(
        zip(kl_rows(batch, given_numbers, estimator), rows(batch, given_numbers["values"]), strict=True)
    ):
        trajectory = batch.trajectories[i]
        cut = trajectory.finish_reason == "length" and truncation == "bootstrap"
        final = float(given_numbers["last_values"][i]) if cut else 0.0
        rewards = [
            r - BETA * k for r, k in zip(outcome_rewards(len(kl), 0.0 if cut else trajectory.reward), kl, strict=True)
        ]
        here = slice(int(batch.action_cu_seqlens[i]), int(batch.action_cu_seqlens[i + 1]))
        want = oracle.gae(rewards, values, final, 0.95, gamma), oracle.value_targets(rewards, values, final, 1.0, gamma)
        np.testing.assert_allclose(got.raw_advantages[here], want[0], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(got.value_targets[here], want[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_kl", [True, False])
@pytest.mark.parametrize("estimator", ["reinforce_plus_plus", "reinforce_plus_plus_baseline"])
def test_reinforce_plus_plus_is_its_papers_equation(estimator: str, with_kl: bool) -> None:
    batch = batch_of(5)
    given_numbers = numbers(batch, 5)
    settings_of_kl = {"kl_in": "reward", "kl_coefficient": BETA} if with_kl else {}
    if not with_kl:
        del given_numbers["reference_log_probs"]
    got = estimates(batch, given_numbers, advantage_estimator=estimator, **settings_of_kl)
    outcomes = batch.outcome_rewards.astype(np.float64)
    if estimator == "reinforce_plus_plus_baseline":
        means = {
            g: np.mean([r for r, h in zip(outcomes, batch.group_ids, strict=True) if h == g])
            for g in ("g0", "g1", "g2")
        }
        outcomes = np.array([r - means[g] for r, g in zip(outcomes, batch.group_ids, strict=True)])
    kl = kl_rows(batch, given_numbers, "k1") if with_kl else [[0.0] * len(r) for r in rows(batch, got.values)]
    raw = [oracle.reinforce_plus_plus(o, k, BETA) for o, k in zip(outcomes, kl, strict=True)]
    np.testing.assert_allclose(got.raw_advantages, np.concatenate(raw), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got.advantages, np.concatenate(oracle.normalised(raw)), rtol=1e-4, atol=1e-4)
    assert not got.value_targets.any()


@pytest.mark.parametrize("estimator", ["group_mean", "group_centred", "leave_one_out"])
def test_rewards_of_a_group_have_the_kl_of_the_whole_response(estimator: str) -> None:
    batch = batch_of(6)
    given_numbers = numbers(batch, 6)
    got = estimates(batch, given_numbers, advantage_estimator=estimator, kl_in="reward", kl_coefficient=BETA)
    kl = kl_rows(batch, given_numbers, "k1")
    shaped = [r - BETA * math.fsum(k) for r, k in zip(batch.outcome_rewards.tolist(), kl, strict=True)]
    plain = Batch(
        [replace(t, reward=r) for t, r in zip(batch.trajectories, shaped, strict=True)], version=batch.version
    )
    del given_numbers["reference_log_probs"]
    want = estimates(plain, given_numbers, advantage_estimator=estimator)
    assert want.advantages.any()
    np.testing.assert_allclose(got.advantages, want.advantages, rtol=1e-4, atol=1e-5)


def test_explained_variance_is_measured_on_what_the_critic_predicts() -> None:
    """Returns have the KL too, and at lambda_critic = 1 are the value targets."""
    batch = batch_of(7)
    got = estimates(batch, numbers(batch, 7), kl_in="reward", kl_coefficient=BETA)
    np.testing.assert_allclose(got.returns, got.value_targets, rtol=1e-6, atol=1e-6)
    plain = estimates(batch, {**numbers(batch, 7)}, kl_coefficient=BETA)
    assert plain.kl_rewards is None and plain.reference_log_probs is not None
    assert np.abs(plain.returns - got.returns).max() > 0.01


def test_the_metrics_show_the_kl_apart() -> None:
    batch, stats = batch_of(7), UpdateStats(num_buckets=2)
    given_numbers = numbers(batch, 7)
    got = estimates(batch, given_numbers, kl_in="reward", kl_coefficient=BETA)
    values = step_metrics(batch, got, stats, {"step": 1.0}, has_critic=True)
    of_responses = [math.fsum(row) for row in kl_rows(batch, given_numbers, "k1")]
    assert values["reward/kl"] == pytest.approx(-BETA * math.fsum(of_responses) / len(batch), rel=1e-4)
    assert values["reward/mean"] == pytest.approx(float(batch.outcome_rewards.mean()))
    in_loss = estimates(batch, given_numbers, kl_coefficient=BETA)
    assert "reward/kl" not in step_metrics(batch, in_loss, stats, {"step": 1.0}, has_critic=True)


def test_a_turn_is_a_run_of_actions_of_the_mask() -> None:
    batch = batch_of(8, tool_text=0.4)
    given_numbers = numbers(batch, 8)
    got = estimates(batch, given_numbers, advantage_level="turn", whiten_advantages=False)
    assert len(batch.turns.actions) - 1 > len(batch)
    cu = batch.action_cu_seqlens
    for i, trajectory in enumerate(batch.trajectories):
        values, turns = given_numbers["values"][cu[i] : cu[i + 1]].tolist(), list[list[float]]()
        before = False
        for chosen in trajectory.action_mask.tolist():
            if chosen and not before:
                turns.append([])
            if chosen:
                turns[-1].append(values.pop(0))
            before = chosen
        rewards = [[0.0] * len(turn) for turn in turns]
        rewards[-1][-1] = trajectory.reward
        advantages, _ = oracle.turn_gae(rewards, turns, 0.0, 0.95)
        np.testing.assert_allclose(got.raw_advantages[cu[i] : cu[i + 1]], np.concatenate(advantages), atol=1e-5)
        assert got.value_targets[cu[i] : cu[i + 1]].tolist() == [trajectory.reward] * int(cu[i + 1] - cu[i])


def test_length_adaptive_lambda_counts_turns() -> None:
    batch = batch_of(9, tool_text=0.4)
    given_numbers = numbers(batch, 9)
    got = estimates(batch, given_numbers, advantage_level="turn", length_adaptive_alpha=0.6, whiten_advantages=False)
    longest = int(np.argmax(np.diff(batch.turns.of_sequence)))
    lam = min(1.0, max(0.0, 1 - 1 / (0.6 * int(np.diff(batch.turns.of_sequence)[longest]))))
    want = estimates(batch, given_numbers, advantage_level="turn", lambda_actor=lam, whiten_advantages=False)
    here = slice(int(batch.action_cu_seqlens[longest]), int(batch.action_cu_seqlens[longest + 1]))
    assert 0 < lam < 0.95
    np.testing.assert_allclose(got.raw_advantages[here], want.raw_advantages[here], rtol=1e-6)


def test_a_micro_batch_has_no_reference_when_the_kl_is_in_the_reward() -> None:
    batch = batch_of(7)
    got = estimates(batch, numbers(batch, 7), kl_in="reward", kl_coefficient=BETA)
    micro_batches = Packer(batch, Share(0, 1, 64)).micro_batches(range(len(batch)))
    for micro in micro_batches:
        assert got.of(micro, torch.device("cpu")).reference_log_probs is None


def test_segments_are_steps() -> None:
    """With one cutpoint a segment and every token one, segments are tokens; of a number no response has, turns."""
    batch = batch_of(10, tool_text=0.4)
    given_numbers = numbers(batch, 10)
    segment = {"advantage_level": "segment", "whiten_advantages": False}
    tokens = estimates(batch, given_numbers, **segment, segment_cutpoints=1, segment_probability=1.0)
    turns = estimates(batch, given_numbers, **segment, segment_cutpoints=10_000)
    np.testing.assert_allclose(
        tokens.raw_advantages, estimates(batch, given_numbers, whiten_advantages=False).raw_advantages, atol=1e-6
    )
    want = estimates(batch, given_numbers, advantage_level="turn", whiten_advantages=False)
    assert turns.raw_advantages.tolist() == want.raw_advantages.tolist()
    between = estimates(batch, given_numbers, **segment, segment_cutpoints=2, segment_probability=0.5)
    assert np.abs(between.raw_advantages - want.raw_advantages).max() > 0.01
    steps = np.split(between.raw_advantages, batch.turns.actions[1:-1])
    pieces = [int((np.diff(turn) != 0).sum()) + 1 for turn in steps]
    assert max(pieces) > 1 and sum(pieces) < batch.num_actions

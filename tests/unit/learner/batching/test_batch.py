"""Mini-batches and micro-batches cover a batch once, the same for any number of ranks; estimates on whole arrays."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from vcppo.common.config import AlgorithmConfig
from vcppo.common.records.trajectory import FinishReason, Trajectory, VersionSpan
from vcppo.common.records.wire import encode_trajectory
from vcppo.learner.batching.batch import Batch, Packer, Share, gather_flat, micro_batches, mini_batches
from vcppo.learner.rl.estimates import Estimates, estimate
from vcppo.learner.rl.step_metrics import step_metrics
from vcppo.learner.rl.update_stats import UpdateStats


def trajectory(index: int, *, reward: float = 1.0, finish: FinishReason = "stop", oldest: int = 3) -> Trajectory:
    length = 3 + index % 5
    return Trajectory(
        id=f"rl-{index}@generator-0.0",
        prompt_id=f"rl-{index}",
        group_id=f"g{index // 2}",
        sample_index=index % 2,
        task="chain_arithmetic",
        prompt_token_ids=np.arange(4, dtype=np.int32),
        response_token_ids=np.arange(length, dtype=np.int32),
        action_mask=np.array([i % 3 != 1 for i in range(length)], np.bool_),
        behaviour_log_probs=np.array([-0.5 if i % 3 != 1 else 0.0 for i in range(length)], np.float32),
        version_spans=(VersionSpan(oldest, 1), VersionSpan(4, length - 1)),
        finish_reason=finish,
        reward=reward,
        outcome="correct" if reward > 0 else "wrong",
        generator_id="generator-0",
        issue_version=oldest,
    )


@pytest.fixture
def batch() -> Batch:
    payloads = [encode_trajectory(trajectory(i, reward=1.0 if i % 3 else -1.0)) for i in range(11)]
    return Batch.decode(payloads, version=4)


def test_staleness_is_of_the_oldest_token(batch: Batch) -> None:
    assert batch.staleness.tolist() == [1] * 11


def test_mini_batches_are_a_seeded_partition(batch: Batch) -> None:
    parts = mini_batches(batch, 3, seed=1, step=5, epoch=0)
    assert sorted(i for part in parts for i in part) == list(range(11))
    assert parts == mini_batches(batch, 3, seed=1, step=5, epoch=0)
    assert parts != mini_batches(batch, 3, seed=1, step=6, epoch=0)
    assert parts != mini_batches(batch, 3, seed=1, step=5, epoch=1)


def estimated(
    batch: Batch, algorithm: AlgorithmConfig, values: np.ndarray, old_log_probs: np.ndarray | None = None
) -> Estimates:
    """As the loop estimates; V after the last token is 0, pi_old the behaviour policy unless given."""
    old = batch.behaviour_log_probs if old_log_probs is None else old_log_probs
    lambdas = {"lambda_actor": algorithm.lambda_actor, "lambda_critic": algorithm.lambda_critic}
    return estimate(batch, values, np.zeros(len(batch), np.float32), old, algorithm, **lambdas)


def test_the_whole_batch_is_packed_once_in_whatever_order_it_is_named(batch: Batch) -> None:
    packer = Packer(batch, Share(0, 1, micro_batch_tokens=20))
    members = mini_batches(batch, 1, seed=0, step=1, epoch=0)[0]
    assert members != sorted(members)
    assert packer.micro_batches(members) is packer.whole
    part = list(packer.micro_batches([5, 2]))
    assert sorted(i for pack in part for i in pack.packed.sequence_index) == [2, 5]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 16])
def test_ranks_share_members_once_and_run_equally_many_micro_batches(batch: Batch, num_ranks: int) -> None:
    members = [9, 0, 4, 7, 2]
    cu = batch.action_cu_seqlens
    expected = np.concatenate([np.arange(cu[i], cu[i + 1]) for i in sorted(members)])
    slots, counts = [], set()
    for rank in range(num_ranks):
        packs = list(micro_batches(batch, members, Share(rank, num_ranks, micro_batch_tokens=20)))
        counts.add(len(packs))
        slots += [pack.slots for pack in packs]
    assert len(counts) == 1
    assert np.array_equal(np.sort(np.concatenate(slots)), expected)


def test_gather_is_exact_in_float32() -> None:
    value = np.float32(0.1)
    parts = [np.array([value, 0.0]), np.array([0.0, -value])]
    whole = gather_flat(parts[0], lambda flat: flat + parts[1])
    assert whole.tolist() == [value, -value]


def test_targets_are_monte_carlo_at_lambda_critic_one(batch: Batch) -> None:
    values = np.linspace(-1, 1, batch.num_actions).astype(np.float32)
    estimates = estimated(batch, AlgorithmConfig(), values, values * 0)
    expected = np.repeat(batch.outcome_rewards, np.diff(batch.action_cu_seqlens))
    assert np.array_equal(estimates.value_targets, expected)
    assert np.array_equal(estimates.returns, expected)
    assert abs(float(estimates.advantages.mean())) < 1e-6
    assert not np.array_equal(estimates.raw_advantages, estimates.advantages)


def test_behaviour_policy_is_pi_old_without_proximal_log_probs(batch: Batch) -> None:
    zeros = np.zeros(batch.num_actions, np.float32)
    estimates = estimated(batch, AlgorithmConfig(), zeros)
    assert np.array_equal(estimates.old_log_probs, np.full(batch.num_actions, -0.5, np.float32))


def test_masked_truncation_leaves_out_whole_responses() -> None:
    batch = Batch([trajectory(0, finish="length"), trajectory(1)], version=4)
    zeros = np.zeros(batch.num_actions, np.float32)
    algorithm = AlgorithmConfig(truncation="mask")
    estimates = estimated(batch, algorithm, zeros)
    cut = batch.action_cu_seqlens[1]
    assert not estimates.mask[:cut].any()
    assert estimates.mask[cut:].all()


@pytest.mark.parametrize("whitened", [None, False])
def test_group_estimators_need_no_values_and_are_not_whitened(batch: Batch, whitened: bool | None) -> None:
    zeros = np.zeros(batch.num_actions, np.float32)
    algorithm = AlgorithmConfig(advantage_estimator="leave_one_out", whiten_advantages=whitened)
    estimates = estimated(batch, algorithm, zeros)
    first = estimates.raw_advantages[batch.action_cu_seqlens[:-1]]
    assert first[:2].tolist() == [-2.0, 2.0]  # rewards -1 and +1 of one group
    assert np.array_equal(estimates.advantages, estimates.raw_advantages)


@pytest.mark.parametrize("estimator", ["group_mean", "leave_one_out"])
@pytest.mark.parametrize("whitened", [None, True, False])
def test_a_group_of_equal_rewards_has_advantage_zero(
    estimator: Literal["group_mean", "leave_one_out"], whitened: bool | None
) -> None:
    """A wrong and a right response of two lengths, then two right ones: the mean over tokens is not 0."""
    batch = Batch([trajectory(i, reward=1.0 if i else -1.0) for i in range(4)], version=4)
    lengths = np.diff(batch.action_cu_seqlens)
    assert lengths[0] != lengths[1]
    zeros = np.zeros(batch.num_actions, np.float32)
    algorithm = AlgorithmConfig(advantage_estimator=estimator, whiten_advantages=whitened)
    advantages = estimated(batch, algorithm, zeros).advantages
    first = advantages[batch.action_cu_seqlens[:-1]]
    assert first[0] < 0 < first[1]
    assert not advantages[batch.action_cu_seqlens[2] :].any()


def test_metrics_have_every_name_readers_know(batch: Batch) -> None:
    values = np.linspace(-1, 1, batch.num_actions).astype(np.float32)
    estimates = estimated(batch, AlgorithmConfig(), values)
    stats = UpdateStats(num_buckets=2)
    stats.by_staleness[:, 1] = [10, 11, 1]
    metrics = step_metrics(batch, estimates, stats, {"values": 1.0, "step": 2.0}, has_critic=True)
    assert metrics["reward/accuracy"] == pytest.approx(7 / 11)
    assert metrics["staleness/mixed_version_fraction"] == 1.0
    assert metrics["staleness/ratio_mean_1"] == pytest.approx(1.1)
    assert metrics["tokens/per_second"] == batch.num_tokens / 2
    assert metrics["time/values"] == 1.0
    for name in ("explained_variance/token", "explained_variance/within_prompt", "values/by_position", "outcome/crash"):
        assert name in metrics
    assert len(metrics["critic_worth/prompt_mean/by_staleness"]) == 2
    assert {"critic_worth/critic/token", "critic_worth/prompt_mean/within_prompt"} <= metrics.keys()


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_what_is_too_far_off_policy_is_left_out_of_the_actor_only(batch: Batch, level: str) -> None:
    cu = batch.action_cu_seqlens
    proximal = batch.behaviour_log_probs.copy()
    proximal[cu[2]] += 3.0  # one token of the third response
    algorithm = AlgorithmConfig(rejection=level, rejection_high=5.0, importance_level="token")
    found = estimated(batch, algorithm, np.zeros(len(proximal), np.float32), proximal)
    length = int(cu[3] - cu[2])
    expected = np.zeros(len(proximal), bool)
    if level == "token":
        expected[cu[2]] = True
    elif level == "sequence" or math.exp(3.0 / length) > 5.0:
        expected[cu[2] : cu[3]] = True
    assert found.actor_mask.tolist() == (~expected).tolist()
    assert found.mask.all() and found.critic_mask.all()  # the critic learns from all, in its later passes too
    kept = found.advantages[found.actor_mask].astype(np.float64)
    assert kept.mean() == pytest.approx(0, abs=1e-6) and not found.advantages[expected].any()
    assert found.importance_weights.max() == 2.0 and found.importance_weights.min() == pytest.approx(1.0)


def test_off_policy_figures_by_staleness_and_versions(batch: Batch) -> None:
    cu = batch.action_cu_seqlens
    proximal = batch.behaviour_log_probs + np.float32(0.1)
    proximal[cu[0]] += 2.0
    algorithm = AlgorithmConfig(rejection="token", rejection_high=3.0)
    found = estimated(batch, algorithm, np.zeros(len(proximal), np.float32), proximal)
    stats = UpdateStats(num_buckets=3)
    values = step_metrics(batch, found, stats, {"step": 1.0}, has_critic=False)
    small, large = math.exp(0.1) - 1.1, math.exp(2.1) - 3.1
    num = len(proximal)
    kl = ((num - 1) * small + large) / num
    assert values["off_policy/mismatch_kl"] == pytest.approx(kl, rel=1e-4)
    assert values["off_policy/mismatch_kl_max"] == pytest.approx(large, rel=1e-5)
    assert values["off_policy/rejected"] == values["off_policy/staleness/rejected_1"] == pytest.approx(1 / num)
    assert values["off_policy/staleness/mismatch_kl_1"] == values["off_policy/versions/mismatch_kl_2"]
    assert values["off_policy/ess_trained"] == pytest.approx((num - 1) / num)
    assert values["policy/behaviour_gap"] == pytest.approx(0.1 + 2 / num, rel=1e-4)
    behaviour = estimated(batch, AlgorithmConfig(old_log_probs="behaviour"), np.zeros(num, np.float32))
    of_behaviour = step_metrics(batch, behaviour, stats, {"step": 1.0}, has_critic=False)
    assert not [name for name in of_behaviour if name.startswith("off_policy/")]  # unknown, not 0


def test_weights_are_normalised_over_what_is_trained(batch: Batch) -> None:
    proximal = batch.behaviour_log_probs + np.linspace(-1, 1, batch.num_actions, dtype=np.float32)
    algorithm = AlgorithmConfig(importance_normalised=True, rejection="token", importance_truncation=1.5)
    found = estimated(batch, algorithm, np.zeros(len(proximal), np.float32), proximal)
    kept = [math.exp(d) for d in np.linspace(-1, 1, batch.num_actions) if 0.5 <= math.exp(d) <= 2]
    mean = sum(min(r, 1.5) for r in kept) / len(kept)
    assert found.importance_weights[found.actor_mask].mean() == pytest.approx(1.0, rel=1e-5)
    assert found.importance_weights.max() == pytest.approx(1.5 / mean, rel=1e-4)

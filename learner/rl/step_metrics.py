"""The numbers of one RL step, by the names every reader (live view, report, TensorBoard) knows. Numpy only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from vcppo.common.records.trajectory import Outcome, mean_components
from vcppo.learner.algorithm.off_policy import effective_share, log_ratios, mismatch
from vcppo.learner.batching.batch import Batch
from vcppo.learner.batching.turn_rewards import mean_by_turn
from vcppo.learner.critic_quality.explained_variance import explained_variance, mean_by_position
from vcppo.learner.critic_quality.signal_by_distance import reward_signal
from vcppo.learner.critic_quality.vs_prompt_mean import critic_worth
from vcppo.learner.rl.estimates import Estimates
from vcppo.learner.rl.update_stats import UpdateStats

MetricValue = float | int | str | None | Sequence[float | None]


def step_metrics(
    batch: Batch, estimates: Estimates, stats: UpdateStats, phases: Mapping[str, float], *, has_critic: bool
) -> dict[str, MetricValue]:
    """All of them but the ledger. ``phases``: seconds by name, ``step`` included."""
    seconds = phases["step"]
    return {
        "stage": "rl",
        **_reward_and_length(batch),
        **_turns(batch),
        **_kl_in_reward(batch, estimates),
        **(_critic_quality(batch, estimates, stats.num_buckets) if has_critic else {}),
        "advantages/by_position": mean_by_position(estimates.raw_advantages, batch.action_cu_seqlens),
        **_policy(stats),
        **_off_policy(batch, estimates, stats.num_buckets),
        **_staleness(batch, estimates, stats, has_critic=has_critic),
        **{f"time/{name}": value for name, value in phases.items()},
        "tokens/step": batch.num_tokens,
        "tokens/per_second": batch.num_tokens / seconds if seconds > 0 else None,
    }


def _reward_and_length(batch: Batch) -> dict[str, MetricValue]:
    rollouts = batch.rollouts
    outcomes = Counter(rollout.outcome for rollout in rollouts)
    lengths = np.diff(batch.rollout_action_cu_seqlens)
    return {
        "reward/mean": float(np.mean([rollout.reward for rollout in rollouts], dtype=np.float32)),
        "reward/accuracy": outcomes["correct"] / len(rollouts),
        "reward/num_responses": len(rollouts),
        **{f"reward/{name}": mean for name, mean in mean_components(rollouts).items()},
        "length/mean": float(lengths.mean()),
        "length/max": int(lengths.max()),
        "length/truncated_fraction": sum(rollout.finish_reason == "length" for rollout in rollouts) / len(rollouts),
        **{f"outcome/{name}": outcomes[name] / len(rollouts) for name in get_args(Outcome)},
    }


def _turns(batch: Batch) -> dict[str, MetricValue]:
    """Of rollouts in an environment; nothing of a task of one turn."""
    seconds = [each.timings["environment"] for each in batch.rollouts if "environment" in each.timings]
    if not seconds:
        return {}
    turns = np.diff(batch.turns.of_sequence[batch.rollout_cu_seqlens])
    num_tokens = sum(len(each.response_token_ids) for each in batch.trajectories)
    return {
        "turns/mean": float(turns.mean()),
        "turns/max": int(turns.max()),
        **_segments(batch),
        **_tools(batch),
        "turns/masked_fraction": 1.0 - batch.num_actions / num_tokens,
        "turns/environment_seconds": float(np.mean(seconds)),
        "turns/reward_by_turn": mean_by_turn(batch.rollouts),
    }


def _segments(batch: Batch) -> dict[str, MetricValue]:
    """Conversations of a rollout, where any of the batch has several."""
    counts = np.diff(batch.rollout_cu_seqlens)
    if counts.max() == 1:
        return {}
    return {"turns/segments": float(counts.mean()), "turns/segments_max": int(counts.max())}


def _tools(batch: Batch) -> dict[str, MetricValue]:
    """A rollout's, where any of the batch called one: those that called none count."""
    if not any("tool_calls" in each.timings for each in batch.rollouts):
        return {}

    def mean(name: str) -> float:
        return sum(each.timings.get(name, 0.0) for each in batch.rollouts) / len(batch.rollouts)

    return {
        "turns/tool_calls": mean("tool_calls"),
        "turns/tool_errors": mean("tool_errors"),
        "turns/tool_seconds": mean("tools"),
    }


def _kl_in_reward(batch: Batch, estimates: Estimates) -> dict[str, MetricValue]:
    """Apart from ``reward/mean``, which is the response's own."""
    if estimates.kl_rewards is None:
        return {}
    return {"reward/kl": float(estimates.kl_rewards.sum(dtype=np.float64)) / len(batch.rollouts)}


def _critic_quality(batch: Batch, estimates: Estimates, num_buckets: int) -> dict[str, MetricValue]:
    """Of the critic that met this batch, against Monte-Carlo returns; beside the prompt's mean on the same tokens."""
    cu = batch.action_cu_seqlens
    quality = explained_variance(estimates.values, estimates.returns, cu, batch.group_ids)
    worth = critic_worth(
        estimates.values, estimates.returns, cu, batch.group_ids, batch.staleness, num_buckets, batch.rollout_numbers
    )
    both = {"critic": worth.critic, "prompt_mean": worth.prompt_mean}
    return {
        "explained_variance/token": quality.token,
        "explained_variance/sequence": quality.sequence,
        "explained_variance/within_prompt": quality.within_prompt,
        "explained_variance/by_position": quality.by_position,
        "values/by_position": mean_by_position(estimates.values, cu),
        **{f"critic_worth/{who}/{name}": value for who, each in both.items() for name, value in asdict(each).items()},
        "critic_worth/num_responses": worth.num_responses,
        **_reward_signal(batch, estimates),
    }


def _reward_signal(batch: Batch, estimates: Estimates) -> dict[str, MetricValue]:
    found = reward_signal(estimates.values, batch.outcome_rewards, batch.correct, batch.action_cu_seqlens)
    return {f"reward_signal/{lam:g}": signal for lam, signal in found.items()}


def _policy(stats: UpdateStats) -> dict[str, MetricValue]:
    return {
        "policy/loss": stats.mean("policy/policy_loss"),
        "policy/clip_fraction": stats.mean("policy/clipped"),
        "policy/ratio_mean": stats.mean("policy/ratio"),
        "policy/entropy": stats.mean("policy/entropy"),
        "policy/approx_kl": stats.mean("policy/approx_kl"),
        "policy/kl_penalty": stats.mean("policy/kl_penalty"),
        "policy/positive_nll": stats.mean("policy/positive_nll", count="policy/num_positive"),
        "policy/grad_norm": _mean(stats.actor_grad_norms),
        "critic/loss": stats.mean("critic/value_loss"),
        "critic/grad_norm": _mean(stats.critic_grad_norms),
    }


def _off_policy(batch: Batch, estimates: Estimates, num_buckets: int) -> dict[str, MetricValue]:
    """What the policy that sampled and the proximal one disagree on, over all actions that could be trained."""
    candidates, weights = estimates.mask, estimates.importance_weights
    rejected = candidates & ~estimates.actor_mask
    metrics: dict[str, MetricValue] = {
        "policy/importance_weight": _mean(weights[estimates.actor_mask]),
        "policy/behaviour_gap": _mean(np.abs(estimates.old_log_probs - estimates.behaviour_log_probs)[candidates]),
    }
    if estimates.old_log_probs is estimates.behaviour_log_probs:  # old_log_probs=behaviour: nothing to compare
        return metrics
    cu = batch.action_cu_seqlens
    d = log_ratios(estimates.old_log_probs, estimates.behaviour_log_probs, cu, "token")
    whole = mismatch(d[candidates])
    metrics |= {
        "off_policy/mismatch_kl": whole.kl,
        "off_policy/mismatch_kl_p99": whole.kl_p99,
        "off_policy/mismatch_kl_max": whole.kl_max,
        "off_policy/ess": whole.ess,
        "off_policy/ess_trained": effective_share((weights * estimates.actor_mask)[candidates]),
        "off_policy/rejected": _mean(rejected[candidates]),
    }
    spans = np.array([len({span.version for span in each.version_spans}) for each in batch.trajectories])
    num_versions = np.repeat(np.clip(spans, 1, num_buckets), np.diff(cu))
    staleness = np.clip(estimates.staleness, 0, num_buckets - 1)
    for name, bucket_of in (("staleness", staleness), ("versions", num_versions)):
        for bucket in np.unique(bucket_of[candidates]):
            chosen = candidates & (bucket_of == bucket)
            part = mismatch(d[chosen])
            metrics[f"off_policy/{name}/mismatch_kl_{bucket}"] = part.kl
            metrics[f"off_policy/{name}/ess_{bucket}"] = part.ess
            metrics[f"off_policy/{name}/rejected_{bucket}"] = _mean(rejected[chosen])
    return metrics


def _staleness(batch: Batch, estimates: Estimates, stats: UpdateStats, *, has_critic: bool) -> dict[str, MetricValue]:
    versions = [{span.version for span in trajectory.version_spans} for trajectory in batch.trajectories]
    metrics: dict[str, MetricValue] = {
        "staleness/mean": float(batch.staleness.mean()),
        "staleness/max": int(batch.staleness.max()),
        "staleness/mixed_version_fraction": sum(len(found) > 1 for found in versions) / len(batch),
    }
    for bucket in range(stats.num_buckets):
        count, ratio, clipped = stats.by_staleness[:, bucket]
        if not count:
            continue
        metrics[f"staleness/ratio_mean_{bucket}"] = ratio / count
        metrics[f"staleness/clip_fraction_{bucket}"] = clipped / count
        if has_critic:
            metrics[f"staleness/explained_variance_{bucket}"] = _explained_in_bucket(batch, estimates, bucket)
    return metrics


def _explained_in_bucket(batch: Batch, estimates: Estimates, bucket: int) -> float | None:
    chosen = np.flatnonzero(batch.staleness == bucket)
    lengths = np.diff(batch.action_cu_seqlens)
    keep = np.repeat(batch.staleness == bucket, lengths)
    cu = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[chosen])])
    groups = [batch.group_ids[i] for i in chosen]
    return explained_variance(estimates.values[keep], estimates.returns[keep], cu, groups).token


def _mean(values: Sequence[float] | NDArray[np.bool_ | np.floating]) -> float | None:
    return float(np.mean(values)) if len(values) else None

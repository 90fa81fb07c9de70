"""The parts of Algorithm 1 that touch the models: values, log-probs, estimates, and one mini-batch update.

Flat arrays are whole-batch ``[A]`` float32 numpy (see `learner.batch`); each function below is called on
every rank and returns the same on every rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from common.config import AlgorithmConfig
from learner.advantages import (
    Ends,
    group_mean_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    place_ends,
    spread_over_actions,
    whiten,
)
from learner.batch import Batch, Share, gather_flat, micro_batches
from learner.engine import TrainEngine, sum_over_ranks
from learner.gae import decoupled_gae, monte_carlo_returns
from learner.losses import Loss, kl_penalty, policy_loss, value_loss
from learner.models import PolicyModel
from learner.packing import PackedBatch, action_slots, behaviour_log_probs

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Models:
    """The engines; ``critic`` is None for the group estimators, ``reference`` unless a KL term needs it."""

    actor: TrainEngine
    critic: TrainEngine | None
    reference: PolicyModel | None = None


@dataclass(frozen=True)
class Estimates:
    """What the losses need, ``[A]`` each but for `last_values`.

    Attributes:
        values: V before each action, of the critic as it was when the batch was claimed (0 without a critic).
        last_values: ``[S]`` V at each sequence's last token.
        old_log_probs: pi_old of the ratio.
        behaviour_log_probs: what generators recorded.
        reference_log_probs: of the starting policy; None without a KL term.
        raw_advantages: before whitening.
        advantages, value_targets: with lambda_actor and lambda_critic.
        returns: Monte-Carlo, with the verifier's reward for cut responses too: what explained variance is against.
        mask: bool, actions trained on.
    """

    values: Float32Array
    last_values: Float32Array
    old_log_probs: Float32Array
    behaviour_log_probs: Float32Array
    reference_log_probs: Float32Array | None
    raw_advantages: Float32Array
    advantages: Float32Array
    value_targets: Float32Array
    returns: Float32Array
    mask: NDArray[np.bool_]


def compute_values(critic: TrainEngine | None, batch: Batch, share: Share) -> tuple[Float32Array, Float32Array]:
    """``values [A]`` before each action and ``last_values [S]``; zeros without a critic."""
    num_actions = batch.num_actions
    flat = np.zeros(num_actions + len(batch), np.float64)
    if critic is not None:
        for packed in micro_batches(batch, range(len(batch)), share):
            output = critic.infer(packed.to(critic.device))
            flat[action_slots(packed, batch.action_cu_seqlens)] = output.values.cpu().numpy()
            flat[num_actions + np.array(packed.sequence_index, np.int64)] = output.final_values.cpu().numpy()
        flat = gather_flat(flat, sum_over_ranks).astype(np.float64)
    return flat[:num_actions].astype(np.float32), flat[num_actions:].astype(np.float32)


def compute_log_probs(
    policy: TrainEngine | PolicyModel, batch: Batch, share: Share, temperature: float
) -> Float32Array:
    """``[A]`` log-probs of the actions at the sampling temperature."""
    flat = np.zeros(batch.num_actions, np.float64)
    for packed in micro_batches(batch, range(len(batch)), share):
        if isinstance(policy, TrainEngine):
            log_probs = policy.infer(packed.to(policy.device), temperature).log_probs
        else:
            with torch.no_grad():
                log_probs = policy(packed.to(next(policy.parameters()).device), temperature).log_probs
        flat[action_slots(packed, batch.action_cu_seqlens)] = log_probs.cpu().numpy()
    return gather_flat(flat, sum_over_ranks)


def estimate(models: Models, batch: Batch, algorithm: AlgorithmConfig, share: Share, temperature: float) -> Estimates:
    """Everything but the values' own phase, for callers that need no timings (tests)."""
    values, last_values = compute_values(models.critic, batch, share)
    old, reference = compute_old_log_probs(models, batch, algorithm, share, temperature)
    return combine(batch, algorithm, values, last_values, old, reference)


def compute_old_log_probs(
    models: Models, batch: Batch, algorithm: AlgorithmConfig, share: Share, temperature: float
) -> tuple[Float32Array | None, Float32Array | None]:
    """(proximal log-probs unless pi_old is the behaviour policy, reference log-probs if there is a KL term)."""
    proximal = None
    if algorithm.old_log_probs == "proximal":
        proximal = compute_log_probs(models.actor, batch, share, temperature)
    reference = None
    if models.reference is not None:
        reference = compute_log_probs(models.reference, batch, share, temperature)
    return proximal, reference


def combine(
    batch: Batch,
    algorithm: AlgorithmConfig,
    values: Float32Array,
    last_values: Float32Array,
    proximal: Float32Array | None,
    reference: Float32Array | None,
) -> Estimates:
    """Advantages with lambda_actor, value targets with lambda_critic; numpy only, no model."""
    cu = batch.action_cu_seqlens
    ends = place_ends(batch.outcome_rewards, last_values, batch.truncated, cu, algorithm.truncation)
    raw, targets = _advantages_and_targets(batch, algorithm, values, ends)
    behaviour = behaviour_log_probs(batch.trajectories)
    outcomes = place_ends(batch.outcome_rewards, last_values, batch.truncated, cu, "terminal").rewards
    return Estimates(
        values=values,
        last_values=last_values,
        old_log_probs=behaviour if proximal is None else proximal,
        behaviour_log_probs=behaviour,
        reference_log_probs=reference,
        raw_advantages=raw,
        advantages=whiten(raw, ends.mask, centre=not algorithm.has_group_baseline) if algorithm.whitens else raw,
        value_targets=targets,
        returns=monte_carlo_returns(outcomes, cu, gamma=algorithm.gamma),
        mask=ends.mask,
    )


def _advantages_and_targets(
    batch: Batch, algorithm: AlgorithmConfig, values: Float32Array, ends: Ends
) -> tuple[Float32Array, Float32Array]:
    cu = batch.action_cu_seqlens
    if algorithm.has_group_baseline:
        grouped = {"group_mean": group_mean_advantages, "leave_one_out": leave_one_out_advantages}
        per_sequence = grouped[algorithm.advantage_estimator](batch.outcome_rewards, batch.group_ids)
        return spread_over_actions(per_sequence, cu), np.zeros_like(values)
    alpha = algorithm.length_adaptive_alpha
    return decoupled_gae(
        ends.rewards,
        values,
        ends.final_values,
        cu,
        gamma=algorithm.gamma,
        lambda_actor=algorithm.lambda_actor if alpha is None else length_adaptive_lambda(cu, alpha),
        lambda_critic=algorithm.lambda_critic,
    )


@dataclass
class UpdateStats:
    """Sums over the actions of all mini-batches of a step (this rank's, until `gathered`), and gradient norms."""

    num_buckets: int
    sums: dict[str, float] = field(default_factory=dict)
    by_staleness: Float64Array = field(init=False)  # [3, buckets]: actions, ratio, clipped
    actor_grad_norms: list[float] = field(default_factory=list)
    critic_grad_norms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_staleness = np.zeros((3, self.num_buckets), np.float64)

    def add(self, prefix: str, sums: dict[str, Tensor]) -> None:
        # Together: on CUDA each look at a value waits for all work before it.
        values = torch.stack([value.float() for value in sums.values()]).tolist()
        for name, value in zip(sums, values, strict=True):
            key = f"{prefix}/{name}"
            self.sums[key] = self.sums.get(key, 0.0) + value

    def gathered(self) -> UpdateStats:
        """The same over all ranks. Every rank has the same names: each runs every loss, dummies included."""
        names = sorted(self.sums)
        flat = np.concatenate([np.array([self.sums[name] for name in names]), self.by_staleness.ravel()])
        total = sum_over_ranks(flat)
        self.sums = {name: float(value) for name, value in zip(names, total, strict=False)}
        self.by_staleness = total[len(names) :].reshape(3, self.num_buckets)
        return self

    def mean(self, key: str) -> float | None:
        """A sum over its number of actions; None when it was not computed."""
        count = self.sums.get(f"{key.split('/')[0]}/num_tokens", 0.0)
        return self.sums[key] / count if count and key in self.sums else None


def update(
    models: Models,
    batch: Batch,
    estimates: Estimates,
    members: Sequence[int],
    algorithm: AlgorithmConfig,
    share: Share,
    temperature: float,
    stats: UpdateStats,
) -> None:
    """One mini-batch: accumulate over micro-batches, then one actor step and one critic step."""
    view = _View(batch, estimates, members)
    for on_host, slots in view.micro_batches(share):
        packed = on_host.to(models.actor.device)  # the critic's too: a rank has one
        output = models.actor.forward(packed, temperature)
        loss = _actor_loss(output.log_probs, view, slots, algorithm, stats)
        stats.add("policy", {"entropy": (output.entropy * view.mask(slots, output.entropy)).sum()})
        models.actor.accumulate(loss)
        if models.critic is not None:
            values = models.critic.forward(packed).values
            value = _critic_loss(values, view, slots, algorithm)
            stats.add("critic", value.sums)
            models.critic.accumulate(value.value)
    stats.actor_grad_norms.append(models.actor.step())
    if models.critic is not None:
        stats.critic_grad_norms.append(models.critic.step())


class _View:
    """A mini-batch's part of the flat arrays, as tensors on a model's device."""

    def __init__(self, batch: Batch, estimates: Estimates, members: Sequence[int]) -> None:
        self.batch, self.estimates, self.members = batch, estimates, members
        cu = batch.action_cu_seqlens
        # Over the whole mini-batch and all ranks: packing and ranks never change the objective.
        self.num_tokens = max(1, sum(int(estimates.mask[cu[i] : cu[i + 1]].sum()) for i in members))
        self._staleness = np.repeat(batch.staleness, np.diff(cu))

    def micro_batches(self, share: Share) -> Iterator[tuple[PackedBatch, NDArray[np.int64]]]:
        for packed in micro_batches(self.batch, self.members, share):
            yield packed, action_slots(packed, self.batch.action_cu_seqlens)

    def tensor(self, flat: NDArray[np.generic], slots: NDArray[np.int64], like: Tensor) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(flat[slots])).to(like.device)

    def mask(self, slots: NDArray[np.int64], like: Tensor) -> Tensor:
        return self.tensor(self.estimates.mask, slots, like)

    def staleness(self, slots: NDArray[np.int64], num_buckets: int) -> NDArray[np.int64]:
        return np.clip(self._staleness[slots], 0, num_buckets - 1)


def _actor_loss(
    log_probs: Tensor, view: _View, slots: NDArray[np.int64], algorithm: AlgorithmConfig, stats: UpdateStats
) -> Tensor:
    estimates = view.estimates
    old = view.tensor(estimates.old_log_probs, slots, log_probs)
    mask = view.mask(slots, log_probs)
    truncated_importance = algorithm.importance_truncation if algorithm.old_log_probs == "proximal" else None
    loss: Loss = policy_loss(
        log_probs,
        old,
        view.tensor(estimates.advantages, slots, log_probs),
        num_tokens=view.num_tokens,
        clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high,
        mask=mask,
        behaviour_log_probs=view.tensor(estimates.behaviour_log_probs, slots, log_probs),
        importance_truncation=truncated_importance,
    )
    stats.add("policy", loss.sums)
    _add_by_staleness(stats, log_probs, old, mask, view.staleness(slots, stats.num_buckets), algorithm)
    if estimates.reference_log_probs is None:
        return loss.value
    reference = view.tensor(estimates.reference_log_probs, slots, log_probs)
    penalty = kl_penalty(log_probs, reference, num_tokens=view.num_tokens, mask=mask)
    stats.add("policy", {"kl_penalty": penalty.sums["kl_penalty"]})
    return loss.value + algorithm.kl_coefficient * penalty.value


def _critic_loss(values: Tensor, view: _View, slots: NDArray[np.int64], algorithm: AlgorithmConfig) -> Loss:
    return value_loss(
        values,
        view.tensor(view.estimates.value_targets, slots, values),
        num_tokens=view.num_tokens,
        mask=view.mask(slots, values),
        old_values=view.tensor(view.estimates.values, slots, values),
        value_clip=algorithm.value_clip,
    )


def _add_by_staleness(
    stats: UpdateStats,
    log_probs: Tensor,
    old: Tensor,
    mask: Tensor,
    staleness: NDArray[np.int64],
    algorithm: AlgorithmConfig,
) -> None:
    """Ratio and how often it left the clip range (whatever the advantage's sign), by staleness."""
    ratio = (log_probs.detach() - old).clamp(-20.0, 20.0).exp().cpu().numpy().astype(np.float64)
    kept = mask.cpu().numpy().astype(np.float64)
    outside = (ratio < 1.0 - algorithm.clip_low) | (ratio > 1.0 + algorithm.clip_high)
    for row, weight in enumerate((kept, kept * ratio, kept * outside)):
        stats.by_staleness[row] += np.bincount(staleness, weight, minlength=stats.num_buckets)

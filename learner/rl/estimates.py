"""What Algorithm 1 needs before its updates: values, old log-probs, advantages and value targets.

Flat arrays are whole-batch ``[A]`` float32 numpy (see `vcppo.learner.batching.batch`); each function below is called on
every rank and returns the same on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vcppo.common.config import AlgorithmConfig
from vcppo.learner.algorithm.advantages import (
    group_centred_advantages,
    group_mean_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    place_ends,
    spread_over_actions,
    whiten,
    without,
)
from vcppo.learner.algorithm.aggregation import loss_weights
from vcppo.learner.algorithm.gae import AdvantagesAndTargets, decoupled_gae, monte_carlo_returns
from vcppo.learner.algorithm.losses import kl_estimate
from vcppo.learner.algorithm.off_policy import importance_weights, log_ratios, normalised, within_band
from vcppo.learner.algorithm.turns import Turns, cut_into_segments, turn_gae
from vcppo.learner.batching.batch import Batch, MicroBatch

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


@dataclass(frozen=True)
class Estimates:
    """What the losses need of a batch, ``[A]`` each but for `last_values`.

    Attributes:
        values: V(s_t) before each action, of the critic as it was when the batch was claimed (0 without a critic).
        last_values: ``[S]`` V at each sequence's last token.
        old_log_probs: log pi_old(a_t | s_t) of the ratio.
        behaviour_log_probs: what generators recorded.
        reference_log_probs: of the reference policy; None without a KL term in the loss.
        kl_rewards: what the KL adds to each token's reward, -beta k(d_t); None without a KL in the reward.
        raw_advantages: before whitening.
        advantages, value_targets: with lambda_actor and lambda_critic.
        returns: Monte-Carlo, with the rewards of cut responses too and with `kl_rewards`: explained
            variance is measured on them.
        importance_weights: w_t of the objective; 1 without a correction.
        mask: bool, actions that may be trained on.
        actor_mask: bool, actions the actor is trained on: `mask` without what ``algorithm.rejection`` leaves out.
        loss_weights: what each action counts in the actor's loss, as ``algorithm.aggregation`` says; 0 outside
            `actor_mask`.
        positive: bool, actions of `actor_mask` in correct responses.
        critic_mask: bool, actions the critic is trained on: `mask` without what is held out of it.
        staleness: int64, of the response each action belongs to.
        entropy: of the distribution that `old_log_probs` are of, nats; None where these are the generators'. No loss
            needs it: it is kept with samples.
    """

    values: Float32[Float32Array, "A"]
    last_values: Float32[Float32Array, "S"]
    old_log_probs: Float32[Float32Array, "A"]
    behaviour_log_probs: Float32[Float32Array, "A"]
    reference_log_probs: Float32[Float32Array, "A"] | None
    kl_rewards: Float32[Float32Array, "A"] | None
    raw_advantages: Float32[Float32Array, "A"]
    advantages: Float32[Float32Array, "A"]
    value_targets: Float32[Float32Array, "A"]
    returns: Float32[Float32Array, "A"]
    importance_weights: Float32[Float32Array, "A"]
    mask: Bool[NDArray[np.bool_], "A"]
    actor_mask: Bool[NDArray[np.bool_], "A"]
    loss_weights: Float32[Float32Array, "A"]
    positive: Bool[NDArray[np.bool_], "A"]
    critic_mask: Bool[NDArray[np.bool_], "A"]
    staleness: Int64[Int64Array, "A"]
    entropy: Float32[Float32Array, "A"] | None = None

    def of(self, micro: MicroBatch, device: torch.device) -> Part:
        """A micro-batch's part, as tensors."""
        reference = self.reference_log_probs
        return Part(
            old_log_probs=micro.of(self.old_log_probs, device),
            reference_log_probs=None if reference is None else micro.of(reference, device),
            advantages=micro.of(self.advantages, device),
            values=micro.of(self.values, device),
            value_targets=micro.of(self.value_targets, device),
            importance_weights=micro.of(self.importance_weights, device),
            mask=micro.of(self.actor_mask, device),
            loss_weights=micro.of(self.loss_weights, device),
            positive=micro.of(self.positive, device),
            critic_mask=micro.of(self.critic_mask, device),
            staleness=self.staleness[micro.slots],
        )


class Part(NamedTuple):
    """`Estimates` of one micro-batch's actions, ``[A]`` tensors on the models' device; `staleness` stays numpy.

    `mask` is the actor's.
    """

    old_log_probs: Float32[Tensor, "A"]
    reference_log_probs: Float32[Tensor, "A"] | None
    advantages: Float32[Tensor, "A"]
    values: Float32[Tensor, "A"]
    value_targets: Float32[Tensor, "A"]
    importance_weights: Float32[Tensor, "A"]
    mask: Bool[Tensor, "A"]
    loss_weights: Float32[Tensor, "A"]
    positive: Bool[Tensor, "A"]
    critic_mask: Bool[Tensor, "A"]
    staleness: Int64[Int64Array, "A"]


def estimate(
    batch: Batch,
    values: Float32[Float32Array, "A"],
    last_values: Float32[Float32Array, "S"],
    old_log_probs: Float32[Float32Array, "A"],
    algorithm: AlgorithmConfig,
    *,
    lambda_actor: float,
    lambda_critic: float,
    reference_log_probs: Float32[Float32Array, "A"] | None = None,
    held_out: Sequence[int] = (),
    entropy: Float32[Float32Array, "A"] | None = None,
) -> Estimates:
    """Advantages A_t with lambda_actor (paper eq. 4), value targets R_t with lambda_critic (eq. 5). Numpy only.

    Under ``algorithm.length_adaptive_alpha`` each response has a lambda_actor of its own; estimators without a critic
    have no targets. `reference_log_probs` go into the loss or the rewards, as ``algorithm.kl_in`` says. The critic is
    not trained on the sequences `held_out`. `entropy` is passed on as it is.
    """
    cu = batch.action_cu_seqlens
    in_reward = None
    if reference_log_probs is not None and algorithm.kl_in == "reward":
        in_reward, reference_log_probs = _kl_rewards(old_log_probs, reference_log_probs, algorithm), None
    placed = batch.placed_rewards
    ends = place_ends(placed.last, last_values, batch.truncated, cu, algorithm.truncation, placed.earlier)
    as_given = place_ends(placed.last, last_values, batch.truncated, cu, "terminal", placed.earlier).rewards
    returns = monte_carlo_returns(_with(as_given, in_reward), cu, gamma=algorithm.gamma)
    if algorithm.has_critic:
        rewards = _with(ends.rewards, in_reward)
        advantages, targets = _gae(
            batch, rewards, values, ends.bootstrap_values, algorithm, lambda_actor=lambda_actor,
            lambda_critic=lambda_critic,
        )  # fmt: skip
    else:
        advantages, targets = _without_critic(batch, in_reward, algorithm), np.zeros_like(values)
    weights, actor_mask = _off_policy(old_log_probs, ends.mask, batch, algorithm)
    return Estimates(
        values=values,
        last_values=last_values,
        old_log_probs=old_log_probs,
        behaviour_log_probs=batch.behaviour_log_probs,
        reference_log_probs=reference_log_probs,
        kl_rewards=in_reward,
        raw_advantages=advantages,
        advantages=whiten(advantages, actor_mask, centre=algorithm.centres) if algorithm.whitens else advantages,
        value_targets=targets,
        returns=returns,
        importance_weights=weights,
        mask=ends.mask,
        actor_mask=actor_mask,
        loss_weights=loss_weights(actor_mask, batch.rollout_action_cu_seqlens, algorithm.aggregation),
        positive=actor_mask & np.repeat(batch.correct, np.diff(cu)),
        critic_mask=without(ends.mask, held_out, cu),
        staleness=np.repeat(batch.staleness, np.diff(cu)),
        entropy=entropy,
    )


def _off_policy(
    proximal: Float32[Float32Array, "A"], mask: Bool[NDArray[np.bool_], "A"], batch: Batch, algorithm: AlgorithmConfig
) -> tuple[Float32[Float32Array, "A"], Bool[NDArray[np.bool_], "A"]]:
    """Weights w_t, and which actions of `mask` are near enough to what was sampled, both ``[A]``."""
    cu, behaviour = batch.action_cu_seqlens, batch.behaviour_log_probs
    weights, kept = np.ones_like(proximal), mask
    if algorithm.rejection is not None:
        ratios = log_ratios(proximal, behaviour, cu, algorithm.rejection)
        kept = mask & within_band(ratios, algorithm.rejection_low, algorithm.rejection_high)
    if algorithm.importance_truncation is not None:
        ratios = log_ratios(proximal, behaviour, cu, algorithm.importance_level)
        weights = importance_weights(ratios, algorithm.importance_truncation)
        if algorithm.importance_normalised:
            weights = normalised(weights, kept)
    return weights, kept


def _kl_rewards(
    policy: Float32[Float32Array, "A"], reference: Float32[Float32Array, "A"], algorithm: AlgorithmConfig
) -> Float32[Float32Array, "A"]:
    """``[A]`` -beta k(log pi_reference - log pi_old), token by token."""
    kl = kl_estimate(
        torch.from_numpy(policy.astype(np.float64)), torch.from_numpy(reference.astype(np.float64)),
        algorithm.kl_estimator,
    )  # fmt: skip
    return (-algorithm.kl_coefficient * kl.numpy()).astype(np.float32)


def _with(rewards: Float32[Float32Array, "A"], more: Float32[Float32Array, "A"] | None) -> Float32[Float32Array, "A"]:
    return rewards if more is None else rewards + more


def _gae(
    batch: Batch,
    rewards: Float32[Float32Array, "A"],
    values: Float32[Float32Array, "A"],
    bootstrap_values: Float32[Float32Array, "S"],
    algorithm: AlgorithmConfig,
    *,
    lambda_actor: float,
    lambda_critic: float,
) -> AdvantagesAndTargets:
    """Of each action, with tokens, turns or segments as steps."""
    turns, alpha = _turns(batch, algorithm), algorithm.length_adaptive_alpha
    steps = batch.action_cu_seqlens if turns is None else turns.of_sequence
    decay = lambda_actor if alpha is None else length_adaptive_lambda(steps, alpha)
    if turns is not None:
        return turn_gae(rewards, values, bootstrap_values, turns, lambda_actor=decay, lambda_critic=lambda_critic)
    return decoupled_gae(
        rewards, values, bootstrap_values, steps, gamma=algorithm.gamma, lambda_actor=decay,
        lambda_critic=lambda_critic,
    )  # fmt: skip


def _turns(batch: Batch, algorithm: AlgorithmConfig) -> Turns | None:
    """The steps of GAE where they are not tokens."""
    match algorithm.advantage_level:
        case "token":
            return None
        case "turn":
            return batch.turns
        case "segment":
            return cut_into_segments(
                batch.turns, batch.behaviour_log_probs, num_cutpoints=algorithm.segment_cutpoints,
                probability=algorithm.segment_probability,
            )  # fmt: skip


def _without_critic(
    batch: Batch,
    kl_rewards: Float32[Float32Array, "A"] | None,
    algorithm: AlgorithmConfig,
) -> Float32[Float32Array, "A"]:
    """``[A]`` of REINFORCE++ (arXiv 2501.03262, eq. 8), outcome - beta sum_{i >= t} KL_i, of its variant whose outcome
    is less the group's mean; else of a group estimator, whose rewards are of whole responses, their KL included. All of
    them know an outcome only: the rewards of turns are summed. A rollout counts once in its group, with the KL of all
    its conversations, and each of these has its advantage."""
    cu, rollouts = batch.action_cu_seqlens, batch.rollouts
    rewards = np.array([rollout.reward for rollout in rollouts], np.float32)
    groups = [rollout.group_id for rollout in rollouts]
    if algorithm.advantage_estimator in ("reinforce_plus_plus", "reinforce_plus_plus_baseline"):
        if algorithm.advantage_estimator == "reinforce_plus_plus_baseline":
            rewards = group_centred_advantages(rewards, groups)
        of_each = rewards[batch.rollout_numbers]
        outcomes = place_ends(of_each, np.zeros_like(of_each), batch.truncated, cu, "terminal").rewards
        return monte_carlo_returns(_with(outcomes, kl_rewards), cu, gamma=algorithm.gamma)
    grouped = {
        "group_mean": group_mean_advantages,
        "group_centred": group_centred_advantages,
        "leave_one_out": leave_one_out_advantages,
    }
    whole = batch.rollout_action_cu_seqlens
    if kl_rewards is not None:
        rewards = rewards + np.add.reduceat(kl_rewards.astype(np.float64), whole[:-1]).astype(np.float32)
    return spread_over_actions(grouped[algorithm.advantage_estimator](rewards, groups), whole)

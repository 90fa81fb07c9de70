"""What Algorithm 1 needs before its updates: values, old log-probs, advantages and value targets.

Flat arrays are whole-batch ``[A]`` float32 numpy (see `vcppo.learner.batching.batch`); each function below is called on
every rank and returns the same on every rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from numpy.typing import NDArray
from torch import Tensor

from vcppo.common.config import AlgorithmConfig
from vcppo.learner.algorithm.advantages import (
    group_mean_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    place_ends,
    spread_over_actions,
    whiten,
)
from vcppo.learner.algorithm.gae import decoupled_gae, monte_carlo_returns
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
        reference_log_probs: of the starting policy; None without a KL term.
        raw_advantages: before whitening.
        advantages, value_targets: with lambda_actor and lambda_critic.
        returns: Monte-Carlo, with the verifier's reward for cut responses too: explained variance is measured on them.
        mask: bool, actions trained on.
        staleness: int64, of the response each action belongs to.
    """

    values: Float32[Float32Array, "A"]
    last_values: Float32[Float32Array, "S"]
    old_log_probs: Float32[Float32Array, "A"]
    behaviour_log_probs: Float32[Float32Array, "A"]
    reference_log_probs: Float32[Float32Array, "A"] | None
    raw_advantages: Float32[Float32Array, "A"]
    advantages: Float32[Float32Array, "A"]
    value_targets: Float32[Float32Array, "A"]
    returns: Float32[Float32Array, "A"]
    mask: Bool[NDArray[np.bool_], "A"]
    staleness: Int64[Int64Array, "A"]

    def of(self, micro: MicroBatch, device: torch.device) -> Part:
        """A micro-batch's part, as tensors."""
        reference = self.reference_log_probs
        return Part(
            old_log_probs=micro.of(self.old_log_probs, device),
            behaviour_log_probs=micro.of(self.behaviour_log_probs, device),
            reference_log_probs=None if reference is None else micro.of(reference, device),
            advantages=micro.of(self.advantages, device),
            values=micro.of(self.values, device),
            value_targets=micro.of(self.value_targets, device),
            mask=micro.of(self.mask, device),
            staleness=self.staleness[micro.slots],
        )


class Part(NamedTuple):
    """`Estimates` of one micro-batch's actions, ``[A]`` tensors on the models' device; `staleness` stays numpy."""

    old_log_probs: Float32[Tensor, "A"]
    behaviour_log_probs: Float32[Tensor, "A"]
    reference_log_probs: Float32[Tensor, "A"] | None
    advantages: Float32[Tensor, "A"]
    values: Float32[Tensor, "A"]
    value_targets: Float32[Tensor, "A"]
    mask: Bool[Tensor, "A"]
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
) -> Estimates:
    """Advantages A_t with lambda_actor (paper eq. 4), value targets R_t with lambda_critic (eq. 5). Numpy only.

    Under ``algorithm.length_adaptive_alpha`` each response has a lambda_actor of its own; the group estimators have a
    baseline in place of a critic, and no targets.
    """
    cu = batch.action_cu_seqlens
    ends = place_ends(batch.outcome_rewards, last_values, batch.truncated, cu, algorithm.truncation)
    outcomes = place_ends(batch.outcome_rewards, last_values, batch.truncated, cu, "terminal").rewards
    if algorithm.has_group_baseline:
        advantages, targets = _group_advantages(batch, algorithm), np.zeros_like(values)
    else:
        alpha = algorithm.length_adaptive_alpha
        advantages, targets = decoupled_gae(
            ends.rewards,
            values,
            ends.bootstrap_values,
            cu,
            gamma=algorithm.gamma,
            lambda_actor=lambda_actor if alpha is None else length_adaptive_lambda(cu, alpha),
            lambda_critic=lambda_critic,
        )
    centre = not algorithm.has_group_baseline
    return Estimates(
        values=values,
        last_values=last_values,
        old_log_probs=old_log_probs,
        behaviour_log_probs=batch.behaviour_log_probs,
        reference_log_probs=reference_log_probs,
        raw_advantages=advantages,
        advantages=whiten(advantages, ends.mask, centre=centre) if algorithm.whitens else advantages,
        value_targets=targets,
        returns=monte_carlo_returns(outcomes, cu, gamma=algorithm.gamma),
        mask=ends.mask,
        staleness=np.repeat(batch.staleness, np.diff(cu)),
    )


def _group_advantages(batch: Batch, algorithm: AlgorithmConfig) -> Float32[Float32Array, "A"]:
    grouped = {"group_mean": group_mean_advantages, "leave_one_out": leave_one_out_advantages}
    per_sequence = grouped[algorithm.advantage_estimator](batch.outcome_rewards, batch.group_ids)
    return spread_over_actions(per_sequence, batch.action_cu_seqlens)

"""The actor's whole loss, of the terms in `vcppo.learner.algorithm.losses` that the settings of ``algorithm.`` name.

L = L_policy + kl_coefficient KL(pi || pi_reference) - entropy_coefficient H(pi) + positive_nll_coefficient L_NLL
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vcppo.common.config import AlgorithmConfig
from vcppo.learner.algorithm.losses import Loss, kl_penalty, policy_loss


@runtime_checkable
class ActorData(Protocol):
    """What the loss needs of a micro-batch's actions, ``[A]`` each; see `vcppo.learner.rl.estimates.Part`."""

    @property
    def old_log_probs(self) -> Tensor: ...
    @property
    def reference_log_probs(self) -> Tensor | None: ...
    @property
    def advantages(self) -> Tensor: ...
    @property
    def importance_weights(self) -> Tensor: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def loss_weights(self) -> Tensor: ...
    @property
    def positive(self) -> Tensor: ...


class Denominators(NamedTuple):
    """Of the whole mini-batch, over all ranks.

    Attributes:
        policy: of `vcppo.learner.algorithm.aggregation.loss_denominator`.
        positive: trained actions of correct responses, at least 1.
    """

    policy: int
    positive: int


def actor_loss(
    log_probs: Float[Tensor, "A"],
    entropy: Float[Tensor, "A"],
    data: ActorData,
    settings: AlgorithmConfig,
    denominators: Denominators,
    action_cu_seqlens: Int64[Tensor, "_"],
    entropy_coefficient: float,
) -> Loss:
    """All terms of one micro-batch.

    Args:
        log_probs: ``[A]`` of the policy being trained, with gradient.
        entropy: ``[A]`` of the distribution each action was drawn from, with gradient if there is a bonus on it.
        action_cu_seqlens: ``[S+1]`` of the pack's whole sequences, on the same device.
        entropy_coefficient: of this step, see `vcppo.learner.algorithm.entropy_target`.

    Sums: those of `policy_loss`, ``entropy``, and of the terms that are on: ``kl_penalty``; ``positive_nll`` with
    ``num_positive``.
    """
    weights, mask = data.loss_weights.to(log_probs.dtype), data.mask
    policy = policy_loss(
        log_probs, data.old_log_probs, data.advantages, num_tokens=denominators.policy, mask=mask,
        clip_low=settings.clip_low, clip_high=settings.clip_high, importance_weights=data.importance_weights,
        objective=settings.objective, dual_clip=settings.dual_clip, action_cu_seqlens=action_cu_seqlens,
        loss_weights=weights,
    )  # fmt: skip
    value, sums = policy.value, dict(policy.sums)
    sums["entropy"] = (entropy.detach() * mask).sum()
    if data.reference_log_probs is not None:
        penalty = kl_penalty(
            log_probs, data.reference_log_probs, num_tokens=denominators.policy, mask=mask, loss_weights=weights,
            estimator=settings.kl_estimator,
        )  # fmt: skip
        value = value + settings.kl_coefficient * penalty.value
        sums["kl_penalty"] = penalty.sums["kl_penalty"]
    if entropy_coefficient:
        value = value - entropy_coefficient * (entropy * weights).sum() / denominators.policy
    if settings.positive_nll_coefficient:
        likelihood = positive_log_likelihood(log_probs, data.positive)
        value = value - settings.positive_nll_coefficient * likelihood / denominators.positive
        sums |= {"positive_nll": -likelihood.detach(), "num_positive": data.positive.sum()}
    return Loss(value, sums)


def positive_log_likelihood(log_probs: Float[Tensor, "A"], positive: Bool[Tensor, "A"]) -> Float[Tensor, ""]:
    """Sum of log pi over the actions of correct responses (VAPO's imitation term, negated and not yet divided)."""
    return (log_probs * positive.to(log_probs.dtype)).sum()

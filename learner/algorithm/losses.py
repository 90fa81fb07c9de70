"""The losses of Algorithm 1 as sums over this micro-batch's actions divided by the GLOBAL action count.

Global means: of the whole mini-batch, over all ranks and micro-batches. So gradients add up, and neither packing nor
the number of ranks changes the objective. Statistics come as detached sums for the same reason: add them over
micro-batches and ranks, then divide by their ``num_tokens``.

All per-action arguments are ``[A]`` float32 (float64 in tests) on one device; A may be 0 (a rank's dummy micro-batch).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from vcppo.learner.algorithm.off_policy import MAX_LOG_RATIO, MIN_LOG_RATIO

Objective = Literal["ppo", "gspo", "cispo", "dis"]
KlEstimator = Literal["k1", "k2", "k3"]


class Loss(NamedTuple):
    """A scalar with gradient, and detached float32 scalar sums by name."""

    value: Float[Tensor, ""]
    sums: dict[str, Float[Tensor, ""]]


def policy_loss(
    log_probs: Float[Tensor, "A"],
    old_log_probs: Float[Tensor, "A"],
    advantages: Float[Tensor, "A"],
    *,
    num_tokens: int,
    clip_low: float,
    clip_high: float,
    mask: Bool[Tensor, "A"] | None = None,
    importance_weights: Float[Tensor, "A"] | None = None,
    objective: Objective = "ppo",
    dual_clip: float | None = None,
    action_cu_seqlens: Int64[Tensor, "_"] | None = None,
    loss_weights: Float[Tensor, "A"] | None = None,
) -> Loss:
    """Clipped objective (paper eq. 2), negated for minimising::

        - 1/num_tokens sum v_t w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        w_t   = importance_weights, say min(pi_old / pi_behaviour, c)      (decoupled PPO; 1 without them)

    rho_t ends at e^MAX_LOG_RATIO: one token can't be most of a mean. What stands in place of min(...) and of rho_t says
    `objective`, see `_summands`.

    Args:
        log_probs: ``[A]`` of the policy being trained (gradient flows here only).
        old_log_probs: ``[A]`` pi_old: the behaviour policy's, or the proximal policy's recomputed at claim time.
        advantages: ``[A]``.
        num_tokens: actions of the whole mini-batch that are trained on, over all ranks; with `loss_weights` what
            `vcppo.learner.algorithm.aggregation.loss_denominator` says.
        mask: ``[A]`` bool, actions trained on; None: all.
        importance_weights: ``[A]`` of `vcppo.learner.algorithm.off_policy.importance_weights`; None: 1.
        dual_clip: a summand of a negative advantage is at least dual_clip A_t; None: no bound.
        action_cu_seqlens: ``[S+1]`` whose actions they are; needed by ``gspo``.
        loss_weights: ``[A]`` v_t, 0 outside the mask; None: 1 for each action of the mask.

    Sums, each over the actions of the mask alike: num_tokens, policy_loss, ratio, clipped (actions whose clip was
    active), approx_kl (k3 estimate of KL(pi_old || pi)).
    """
    weight = _weight(mask, log_probs)
    log_ratio = _log_ratio(log_probs, old_log_probs)
    used = log_ratio if objective != "gspo" else _of_sequences(log_probs, log_ratio, weight, action_cu_seqlens)
    summand, clipped = _summands(objective, log_probs, used.exp(), advantages, (clip_low, clip_high, dual_clip))
    if importance_weights is not None:
        summand = importance_weights * summand
    loss = -(summand * (weight if loss_weights is None else loss_weights)).sum() / num_tokens
    return Loss(loss, _sums(summand.detach(), clipped, log_ratio.detach(), weight))


def _sums(
    summand: Float[Tensor, "A"], clipped: Bool[Tensor, "A"], log_ratio: Float[Tensor, "A"], weight: Float[Tensor, "A"]
) -> dict[str, Float[Tensor, ""]]:
    """Those of `policy_loss`."""
    ratio = log_ratio.exp()
    return {
        "num_tokens": weight.sum(),
        "policy_loss": -(summand * weight).sum(),
        "ratio": (ratio * weight).sum(),
        "clipped": (clipped * weight).sum(),
        "approx_kl": ((ratio - 1.0 - log_ratio) * weight).sum(),
    }


def _summands(
    objective: Objective,
    log_probs: Float[Tensor, "A"],
    ratio: Float[Tensor, "A"],
    advantages: Float[Tensor, "A"],
    clips: tuple[float, float, float | None],
) -> tuple[Float[Tensor, "A"], Bool[Tensor, "A"]]:
    """``[A]`` what is maximised, and where the clip is active.

    ppo and gspo: min(rho_t A_t, clip(rho_t) A_t); gspo's rho_t is of the sequence. cispo: clip(rho_t) A_t log pi, the
    clipped ratio without gradient: a clipped token still has one (MiniMax-M1). dis: rho_t A_t log pi within the band,
    the ratio without gradient, and 0 outside of it, whatever the sign of A_t (SAO, arXiv 2607.07508, eq. 1 to 3).
    `clips`: low, high and dual clip.
    """
    clip_low, clip_high, dual_clip = clips
    within = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    if objective == "cispo":
        return within.detach() * advantages * log_probs, (within != ratio).detach()
    if objective == "dis":
        outside = (within != ratio).detach()
        return torch.where(outside, 0.0, ratio.detach() * advantages * log_probs), outside
    unclipped, bounded = ratio * advantages, within * advantages
    summand, clipped = torch.minimum(unclipped, bounded), bounded < unclipped
    if dual_clip is not None:
        least = torch.where(advantages < 0, dual_clip * advantages, -torch.inf)
        clipped = clipped | (summand < least)
        summand = torch.maximum(summand, least)
    return summand, clipped.detach()


def _of_sequences(
    log_probs: Float[Tensor, "A"],
    log_ratio: Float[Tensor, "A"],
    weight: Float[Tensor, "A"],
    action_cu_seqlens: Int64[Tensor, "_"] | None,
) -> Float[Tensor, "A"]:
    """``[A]`` log s_t of GSPO-token: its value is the mean of log rho over the sequence's trained actions, its gradient
    that of the action's own log pi. With one advantage a sequence that is GSPO's gradient."""
    if action_cu_seqlens is None:
        raise ValueError("policy_loss: objective=gspo needs action_cu_seqlens")
    lengths = action_cu_seqlens.diff()
    sequences = torch.arange(len(lengths), device=log_probs.device)
    owner = torch.repeat_interleave(sequences, lengths, output_size=len(log_probs))  # else the host waits for CUDA
    zeros = torch.zeros(len(lengths), dtype=log_probs.dtype, device=log_probs.device)
    total = zeros.index_add(0, owner, (log_ratio * weight).detach())
    mean = total / zeros.index_add(0, owner, weight).clamp(min=1.0)
    return mean[owner] + log_probs - log_probs.detach()


def probability_ratio(log_probs: Float[Tensor, "A"], old_log_probs: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
    """``[A]`` rho_t of `policy_loss`, detached: for statistics."""
    return _log_ratio(log_probs.detach(), old_log_probs).exp()


def value_loss(
    values: Float[Tensor, "A"],
    value_targets: Float[Tensor, "A"],
    *,
    num_tokens: int,
    mask: Bool[Tensor, "A"] | None = None,
    old_values: Float[Tensor, "A"] | None = None,
    value_clip: float | None = None,
) -> Loss:
    """1/num_tokens sum 1/2 (V - R)^2 (paper's critic loss).

    With `value_clip` the worse of V and V clipped to old_values +- value_clip counts (PPO2); it throttles value
    pretraining, so it is off there. Sums: num_tokens, value_loss.

    Args:
        values: ``[A]`` V(s_t) of the critic being trained, with gradient.
        value_targets: ``[A]`` R_t of `vcppo.learner.algorithm.gae.decoupled_gae`.
        num_tokens: actions of the whole mini-batch that are trained on, over all ranks.
        mask: ``[A]`` bool, actions trained on; None: all.
        old_values: ``[A]`` V(s_t) of the critic when the batch was claimed; needed by `value_clip`.

    Raises:
        ValueError: value_clip without old_values.
    """
    weight = _weight(mask, values)
    error = (values - value_targets).square()
    if value_clip is not None:
        if old_values is None:
            raise ValueError(f"value_loss: value_clip={value_clip} needs old_values")
        clipped = old_values + (values - old_values).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (clipped - value_targets).square())
    total = 0.5 * (error * weight).sum()
    return Loss(total / num_tokens, {"num_tokens": weight.sum(), "value_loss": total.detach()})


def kl_penalty(
    log_probs: Float[Tensor, "A"],
    reference_log_probs: Float[Tensor, "A"],
    *,
    num_tokens: int,
    mask: Bool[Tensor, "A"] | None = None,
    loss_weights: Float[Tensor, "A"] | None = None,
    estimator: KlEstimator = "k3",
) -> Loss:
    """1/num_tokens sum v_t k(d_t) with the k of `kl_estimate`, an estimate of KL(pi || pi_reference) (weight it
    yourself). `num_tokens` and `loss_weights` as in `policy_loss`. Sums: num_tokens, kl_penalty."""
    weight = _weight(mask, log_probs)
    each = kl_estimate(log_probs, reference_log_probs, estimator)
    total = (each * (weight if loss_weights is None else loss_weights)).sum()
    return Loss(total / num_tokens, {"num_tokens": weight.sum(), "kl_penalty": (each * weight).sum().detach()})


def kl_estimate(
    log_probs: Float[Tensor, "A"], reference_log_probs: Float[Tensor, "A"], estimator: KlEstimator
) -> Float[Tensor, "A"]:
    """``[A]`` k(d_t), an estimate of KL(pi || pi_reference) at each action (Schulman, "Approximating KL divergence")::

        d = log pi_reference - log pi
        k1 = -d            its mean is the KL; in a loss the mean of its gradient is 0, in a reward it is the KL's
        k2 = d^2 / 2       in a loss the mean of its gradient is the KL's
        k3 = e^d - d - 1   never negative, of least variance

    Beyond d = MAX_LOG_RATIO k3 goes on along its tangent: a token far below the reference is still pulled back, by a
    gradient of e^5 - 1 at most.
    """
    difference = reference_log_probs - log_probs
    if estimator == "k1":
        return -difference
    if estimator == "k2":
        return 0.5 * difference.square()
    near = difference.clamp(max=MAX_LOG_RATIO)
    return near.exp() * (1.0 + difference - near) - difference - 1.0


def _log_ratio(log_probs: Float[Tensor, "A"], old_log_probs: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
    return (log_probs - old_log_probs).clamp(MIN_LOG_RATIO, MAX_LOG_RATIO)


def _weight(mask: Bool[Tensor, "A"] | None, like: Float[Tensor, "A"]) -> Float[Tensor, "A"]:
    return torch.ones_like(like, requires_grad=False) if mask is None else mask.to(like.dtype)

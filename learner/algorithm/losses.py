"""The losses of Algorithm 1 as sums over this micro-batch's actions divided by the GLOBAL action count.

Global means: of the whole mini-batch, over all ranks and micro-batches. So gradients add up, and neither packing nor
the number of ranks changes the objective. Statistics come as detached sums for the same reason: add them over
micro-batches and ranks, then divide by their ``num_tokens``.

All per-action arguments are ``[A]`` float32 on one device; A may be 0 (a rank's dummy micro-batch).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

# exp() of a larger log-ratio is not a training signal but an overflow on its way to NaN.
MAX_LOG_RATIO = 20.0


class Loss(NamedTuple):
    """A scalar with gradient, and detached float32 scalar sums by name."""

    value: Float32[Tensor, ""]
    sums: dict[str, Float32[Tensor, ""]]


def policy_loss(
    log_probs: Float32[Tensor, "A"],
    old_log_probs: Float32[Tensor, "A"],
    advantages: Float32[Tensor, "A"],
    *,
    num_tokens: int,
    clip_low: float,
    clip_high: float,
    mask: Bool[Tensor, "A"] | None = None,
    behaviour_log_probs: Float32[Tensor, "A"] | None = None,
    importance_truncation: float | None = None,
) -> Loss:
    """Clipped objective (paper eq. 2), negated for minimising::

        - 1/num_tokens sum w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
        rho_t = pi(a_t|s_t) / pi_old(a_t|s_t)
        w_t   = min(pi_old / pi_behaviour, importance_truncation)      (decoupled PPO; 1 without it; no gradient)

    Args:
        log_probs: ``[A]`` of the policy being trained (gradient flows here only).
        old_log_probs: ``[A]`` pi_old: the behaviour policy's, or the proximal policy's recomputed at claim time.
        advantages: ``[A]``.
        num_tokens: actions of the whole mini-batch that are trained on, over all ranks.
        mask: ``[A]`` bool, actions trained on; None: all.
        behaviour_log_probs: ``[A]``; used for w_t when `importance_truncation` is given, and for the behaviour_gap sum.

    Sums: num_tokens, policy_loss, ratio, clipped (actions whose clip was active), approx_kl (k3 estimate of
    KL(pi_old || pi)), importance_weight, behaviour_gap (|proximal - behaviour|, nats).
    """
    weight = _weight(mask, log_probs)
    log_ratio = _log_ratio(log_probs, old_log_probs)
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high) * advantages
    importance = _importance_weight(old_log_probs, behaviour_log_probs, importance_truncation)
    objective = importance * torch.minimum(unclipped, clipped)
    loss = -(objective * weight).sum() / num_tokens
    with torch.no_grad():
        sums = {
            "num_tokens": weight.sum(),
            "policy_loss": -(objective * weight).sum(),
            "ratio": (ratio * weight).sum(),
            "clipped": ((clipped < unclipped) * weight).sum(),
            "approx_kl": ((ratio - 1.0 - log_ratio) * weight).sum(),
            "importance_weight": (importance * weight).sum(),
        }
        if behaviour_log_probs is not None:
            sums["behaviour_gap"] = ((old_log_probs - behaviour_log_probs).abs() * weight).sum()
    return Loss(loss, sums)


def probability_ratio(log_probs: Float32[Tensor, "A"], old_log_probs: Float32[Tensor, "A"]) -> Float32[Tensor, "A"]:
    """``[A]`` rho_t of `policy_loss`, detached: for statistics."""
    return _log_ratio(log_probs.detach(), old_log_probs).exp()


def value_loss(
    values: Float32[Tensor, "A"],
    value_targets: Float32[Tensor, "A"],
    *,
    num_tokens: int,
    mask: Bool[Tensor, "A"] | None = None,
    old_values: Float32[Tensor, "A"] | None = None,
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
    log_probs: Float32[Tensor, "A"],
    reference_log_probs: Float32[Tensor, "A"],
    *,
    num_tokens: int,
    mask: Bool[Tensor, "A"] | None = None,
) -> Loss:
    """1/num_tokens sum k3, an estimate of KL(pi || pi_reference) that is never negative (weight it yourself).

    k3 = exp(d) - d - 1 with d = log pi_reference - log pi, both ``[A]``. Sums: num_tokens, kl_penalty.
    """
    weight = _weight(mask, log_probs)
    difference = (reference_log_probs - log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    total = ((difference.exp() - difference - 1.0) * weight).sum()
    return Loss(total / num_tokens, {"num_tokens": weight.sum(), "kl_penalty": total.detach()})


def _log_ratio(log_probs: Float32[Tensor, "A"], old_log_probs: Float32[Tensor, "A"]) -> Float32[Tensor, "A"]:
    return (log_probs - old_log_probs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def _importance_weight(
    proximal: Float32[Tensor, "A"], behaviour: Float32[Tensor, "A"] | None, truncation: float | None
) -> Float32[Tensor, "A"]:
    if truncation is None:
        return torch.ones_like(proximal)
    if behaviour is None:
        raise ValueError(f"policy_loss: importance_truncation={truncation} needs behaviour_log_probs")
    log_weight = (proximal - behaviour).detach().clamp(max=MAX_LOG_RATIO)
    return log_weight.exp().clamp(max=truncation)


def _weight(mask: Bool[Tensor, "A"] | None, like: Float32[Tensor, "A"]) -> Float32[Tensor, "A"]:
    return torch.ones_like(like, requires_grad=False) if mask is None else mask.to(like.dtype)

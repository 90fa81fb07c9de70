"""A value as a distribution over bins: two-hot and HL-Gauss.

The critic gives logits over m bins instead of one number. V(s) is the mean of the bins' centres under their softmax,
and the loss is the cross entropy against the return, projected onto the bins:

    V = sum_i softmax(l)_i c_i            L_critic = -1/num_tokens sum_t sum_i p_i(R_t) log softmax(l_t)_i

    two_hot    p_i(R) = max(0, 1 - |R - c_i| / w): the two centres around R, so that sum_i p_i c_i = R exactly
               (MuZero, arXiv 1911.08265, appendix F; DreamerV3, arXiv 2301.04104)
    hl_gauss   p_i(R) = (Phi((e_{i+1} - R) / s) - Phi((e_i - R) / s)) / (Phi((e_m - R) / s) - Phi((e_0 - R) / s)):
               a Gaussian around R of deviation s = sigma_ratio w, cut into the bins ("Stop Regressing",
               arXiv 2403.03950, equation 4)

w is the width of a bin. Returns beyond [low, high] count as its ends. The outer centres of two_hot are low and high.
The bins of hl_gauss reach `MARGIN` deviations beyond: at the end of the paper's own support half of the Gaussian would
be cut off and the mean lie inside, and here most returns are an end (the rewards of right and wrong). Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from vcppo.common.config import VcppoConfig
from vcppo.common.config.training import HL_GAUSS_MARGIN as MARGIN
from vcppo.learner.algorithm.losses import Loss


@dataclass(frozen=True)
class ValueBins:
    """The bins of a categorical value head.

    Attributes:
        low, high: the range of returns; what is beyond counts as its end.
        num_bins: m, at least 2.
        sigma_ratio: of hl_gauss, the Gaussian's deviation in widths of a bin; None: two_hot.
    """

    low: float
    high: float
    num_bins: int
    sigma_ratio: float | None = None

    @classmethod
    def of(cls, config: VcppoConfig) -> ValueBins | None:
        """Those the config asks for; None with a scalar head."""
        critic, rule = config.critic, config.reward_rule
        if critic.head == "scalar":
            return None
        low, high = critic.value_range((rule.low, rule.high))
        return cls(low, high, critic.num_bins, critic.sigma_ratio if critic.head == "hl_gauss" else None)

    @property
    def width(self) -> float:
        """w, of one bin."""
        inner = self.num_bins - 1.0 if self.sigma_ratio is None else self.num_bins - 2 * MARGIN * self.sigma_ratio
        return (self.high - self.low) / inner

    def centres(self, like: Tensor) -> Float[Tensor, "m"]:
        """``[m]`` c_i, rising, of the type and on the device of `like`."""
        first = self.low if self.sigma_ratio is None else self._first_edge + 0.5 * self.width
        return first + self.width * torch.arange(self.num_bins, dtype=like.dtype, device=like.device)

    def project(self, returns: Float[Tensor, "A"]) -> Float[Tensor, "A m"]:
        """``[A]`` returns to ``[A, m]`` probabilities p_i, without gradient."""
        within = returns.detach().clamp(self.low, self.high)[:, None]
        if self.sigma_ratio is None:
            return (1.0 - (within - self.centres(returns)).abs() / self.width).clamp(min=0.0)
        edges = self._first_edge + self.width * torch.arange(
            self.num_bins + 1, dtype=returns.dtype, device=returns.device
        )
        below = torch.erf((edges - within) / (math.sqrt(2.0) * self.sigma_ratio * self.width))  # 2 Phi - 1
        return below.diff(dim=1) / (below[:, -1:] - below[:, :1])

    def mean(self, logits: Float[Tensor, "A m"]) -> Float[Tensor, "A"]:
        """``[A, m]`` logits to ``[A]`` values V, with gradient."""
        return logits.softmax(dim=1) @ self.centres(logits)

    def as_json(self) -> dict[str, Any]:
        """What a critic's config.json says of its head."""
        kind = "two_hot" if self.sigma_ratio is None else "hl_gauss"
        return {
            "head": kind, "num_bins": self.num_bins, "value_min": self.low, "value_max": self.high,
            "sigma_ratio": self.sigma_ratio,
        }  # fmt: skip

    @property
    def _first_edge(self) -> float:
        return self.low - MARGIN * (self.sigma_ratio or 0.0) * self.width


def categorical_value_loss(
    logits: Float[Tensor, "A m"],
    value_targets: Float[Tensor, "A"],
    bins: ValueBins,
    *,
    num_tokens: int,
    mask: Bool[Tensor, "A"] | None = None,
) -> Loss:
    """-1/num_tokens sum_t sum_i p_i(R_t) log softmax(l_t)_i.

    Args:
        logits: ``[A, m]`` of the critic being trained, with gradient.
        value_targets: ``[A]`` R_t.
        num_tokens: actions of the whole mini-batch that are trained on, over all ranks.
        mask: ``[A]`` bool, actions trained on; None: all.

    Sums: num_tokens, and value_loss: of the cross entropies. At a critic that knows the returns it is not 0 but the
    entropy of p.
    """
    weight = torch.ones_like(value_targets) if mask is None else mask.to(logits.dtype)
    entropies = -(bins.project(value_targets.to(logits.dtype)) * logits.log_softmax(dim=1)).sum(dim=1)
    total = (entropies * weight).sum()
    return Loss(total / num_tokens, {"num_tokens": weight.sum(), "value_loss": total.detach()})

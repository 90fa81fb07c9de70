"""How far the policy that sampled is from the one that is trained, and what is done about it. Numpy only.

Between them lie versions (staleness) and two implementations of one model (vLLM and the learner). All of it is in one
number for each action, d_t = log pi_proximal(a_t|s_t) - log pi_behaviour(a_t|s_t). Here it becomes a weight, a decision
to leave an action or a whole response out, and the figures that show how much there was to correct.

Per-action arrays are flat ``[A]`` over the actions of S sequences; ``action_cu_seqlens [S+1]`` int64 says whose.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Level = Literal["token", "sequence", "geometric"]

# The bounds of a log-ratio, in losses and in figures: exp() of a larger one would be most of a mean over thousands of
# tokens, and hide all others. So ratios end at e^5 = 148, where they have no gradient any more, k3 at e^5 - 6 = 142.4.
MAX_LOG_RATIO, MIN_LOG_RATIO = 5.0, -20.0


class Mismatch(NamedTuple):
    """Figures over some actions; all None where there are none.

    Attributes:
        kl: mean of k3 = e^d - d - 1, an estimate of KL(pi_behaviour || pi_proximal) that is never negative, nats.
        kl_p99, kl_max: of the same, over actions.
        ess: effective sample size of the ratios e^d as a share of the actions, (sum e^d)^2 / (n sum e^2d).
    """

    kl: float | None
    kl_p99: float | None
    kl_max: float | None
    ess: float | None


def log_ratios(
    proximal: Float32[Float32Array, "A"],
    behaviour: Float32[Float32Array, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    level: Level,
) -> Float64[Float64Array, "A"]:
    """``[A]`` d_t (`token`), or for every action of a sequence the sum (`sequence`) or mean (`geometric`) of its d_t.

    So e to it is the token's ratio, the product of the sequence's ratios, or their geometric mean.
    """
    d = proximal.astype(np.float64) - behaviour.astype(np.float64)
    if level == "token":
        return d
    lengths = np.diff(action_cu_seqlens)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    total = np.zeros(len(lengths))
    np.add.at(total, owner, d)
    of_sequence = total if level == "sequence" else total / np.maximum(lengths, 1)
    spread: Float64Array = np.repeat(of_sequence, lengths)
    return spread


def importance_weights(log_ratio: Float64[Float64Array, "A"], truncation: float) -> Float32[Float32Array, "A"]:
    """``[A]`` w_t = min(e^log_ratio, truncation): truncated importance sampling. No ratio is too large to compute."""
    weights: Float32Array = np.exp(np.minimum(log_ratio, math.log(truncation))).astype(np.float32)
    return weights


def normalised(weights: Float32[Float32Array, "A"], mask: Bool[BoolArray, "A"]) -> Float32[Float32Array, "A"]:
    """``[A]`` weights over their mean in `mask`, of the whole batch; as they are where that is 0 or `mask` is empty."""
    total, count = float(weights[mask].sum(dtype=np.float64)), int(mask.sum())
    return (weights * (count / total)).astype(np.float32) if total > 0 else weights


def within_band(log_ratio: Float64[Float64Array, "A"], low: float, high: float) -> Bool[BoolArray, "A"]:
    """``[A]`` low <= e^log_ratio <= high: what is trained on. False for a ratio that is not a number."""
    inside: BoolArray = (log_ratio >= math.log(low)) & (log_ratio <= math.log(high))
    return inside


def mismatch(d: Float64[Float64Array, "N"]) -> Mismatch:
    """Figures over N actions' d_t, each bounded to [MIN_LOG_RATIO, MAX_LOG_RATIO]."""
    if not len(d):
        return Mismatch(None, None, None, None)
    bounded = np.clip(d, MIN_LOG_RATIO, MAX_LOG_RATIO)
    k3 = np.expm1(bounded) - bounded
    return Mismatch(
        kl=float(k3.mean()),
        kl_p99=float(np.quantile(k3, 0.99)),
        kl_max=float(k3.max()),
        ess=effective_share(np.exp(bounded)),
    )


def effective_share(weights: NDArray[np.floating]) -> float | None:
    """(sum w)^2 / (N sum w^2) of N weights: 1 where all are alike, 1/N where one has all; None where all are 0."""
    w = weights.astype(np.float64)
    squares = float(np.square(w).sum())
    return float(w.sum() ** 2 / (len(w) * squares)) if squares else None

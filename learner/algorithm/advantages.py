"""What surrounds GAE: where rewards go, how a cut response ends, group baselines, whitening. Numpy only.

Per-action arrays are flat ``[A]`` over the actions of S sequences; ``action_cu_seqlens [S+1]`` int64 says whose.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
Int64Array = NDArray[np.int64]
BoolArray = NDArray[np.bool_]
Truncation = Literal["terminal", "bootstrap", "mask"]
SumOverRanks = Callable[[Float64Array], Float64Array]


class Ends(NamedTuple):
    """How sequences end, ready for `vcppo.learner.algorithm.gae.decoupled_gae`.

    Attributes:
        rewards: ``[A]`` float32, the outcome on each sequence's last action, elsewhere what earlier turns got.
        bootstrap_values: ``[S]`` float32, V(s_T) as the estimator takes it: 0 after a true end.
        mask: ``[A]`` bool, actions that are trained on (and whitened, and counted).
    """

    rewards: Float32[Float32Array, "A"]
    bootstrap_values: Float32[Float32Array, "S"]
    mask: Bool[BoolArray, "A"]


def place_ends(
    outcome_rewards: Float[NDArray[np.floating], "S"],
    last_values: Float[NDArray[np.floating], "S"],
    truncated: Bool[BoolArray, "S"],
    action_cu_seqlens: Int64[Int64Array, "S+1"],
    truncation: Truncation,
    earlier_rewards: Float32[Float32Array, "A"] | None = None,
) -> Ends:
    """Put each outcome on the last action token and decide V(s_T).

    Args:
        outcome_rewards: ``[S]``, the verifier's reward; with `earlier_rewards` what they leave of it.
        last_values: ``[S]``, the critic's value at each sequence's last token.
        truncated: ``[S]`` bool, finish reason ``length`` (said by the generator, never inferred from padding).
        truncation: ``terminal``: a cut is an end like EOS, with the verifier's reward, V(s_T) = 0. ``bootstrap``:
            the outcome of a cut response was not seen, so its reward is left out and V(s_T) stands in.
            ``mask``: none of its tokens is trained on.
        earlier_rewards: ``[A]``, of turns before the last, on the last action of each: they were seen, so a cut leaves
            them. None: there are none.

    Tool text after the last action doesn't move the reward: it belongs to the last *action*.
    """
    lengths = np.diff(action_cu_seqlens)
    cut = truncated.astype(bool)
    bootstrapped = cut if truncation == "bootstrap" else np.zeros_like(cut)
    rewards = np.zeros(int(action_cu_seqlens[-1]), np.float32) if earlier_rewards is None else earlier_rewards.copy()
    has_actions = lengths > 0
    ends = action_cu_seqlens[1:][has_actions] - 1
    rewards[ends] = np.where(bootstrapped, 0.0, outcome_rewards)[has_actions]
    bootstrap_values = np.where(bootstrapped, last_values, 0.0).astype(np.float32)
    trained = ~cut if truncation == "mask" else np.ones_like(cut)
    return Ends(rewards, bootstrap_values, np.repeat(trained, lengths))


def without(
    mask: Bool[BoolArray, "A"], held_out: Sequence[int], action_cu_seqlens: Int64[Int64Array, "S1"]
) -> Bool[BoolArray, "A"]:
    """``[A]`` a copy of `mask`, False at the actions of the sequences `held_out`."""
    kept = mask.copy()
    for i in held_out:
        kept[action_cu_seqlens[i] : action_cu_seqlens[i + 1]] = False
    return kept


def length_adaptive_lambda(action_cu_seqlens: Int64[Int64Array, "S1"], alpha: float) -> Float64[Float64Array, "S1-1"]:
    """``[S]`` lambda_actor = 1 - 1/(alpha L), clamped to [0, 1] (VAPO); L is the number of actions."""
    lengths = np.maximum(np.diff(action_cu_seqlens), 1)
    clamped: Float64Array = np.clip(1.0 - 1.0 / (alpha * lengths), 0.0, 1.0)
    return clamped


def group_mean_advantages(
    rewards: Float[NDArray[np.floating], "S"], group_ids: Sequence[str], *, epsilon: float = 1e-6
) -> Float32[Float32Array, "S"]:
    """GRPO: ``[S]`` (r - mean) / (std + epsilon) within each prompt's group; exactly 0 where all rewards are alike."""
    group, count = _groups(group_ids)
    rewards64 = _above_least(rewards, group)
    centred = rewards64 - (np.bincount(group, rewards64) / count)[group]
    std = np.sqrt(np.bincount(group, centred**2) / count)
    return (centred / (std[group] + epsilon)).astype(np.float32)


def group_centred_advantages(
    rewards: Float[NDArray[np.floating], "S"], group_ids: Sequence[str]
) -> Float32[Float32Array, "S"]:
    """Dr.GRPO: ``[S]`` r - mean within each prompt's group, over no deviation; exactly 0 where all are alike."""
    group, count = _groups(group_ids)
    rewards64 = _above_least(rewards, group)
    centred: Float32Array = (rewards64 - (np.bincount(group, rewards64) / count)[group]).astype(np.float32)
    return centred


def leave_one_out_advantages(
    rewards: Float[NDArray[np.floating], "S"], group_ids: Sequence[str]
) -> Float32[Float32Array, "S"]:
    """RLOO: ``[S]`` r_i minus the mean reward of the others of its group; exactly 0 where all are alike, or alone."""
    group, count = _groups(group_ids)
    rewards64 = _above_least(rewards, group)
    others = np.bincount(group, rewards64)[group] - rewards64
    num_others = count[group] - 1
    baseline = np.where(num_others > 0, others / np.maximum(num_others, 1), rewards64)
    advantages: Float32Array = (rewards64 - baseline).astype(np.float32)
    return advantages


def spread_over_actions(
    per_sequence: Float[NDArray[np.floating], "S"], action_cu_seqlens: Int64[Int64Array, "S+1"]
) -> Float32[Float32Array, "A"]:
    """``[S]`` to ``[A]``: every action of a sequence gets the sequence's number."""
    spread: Float32Array = np.repeat(np.asarray(per_sequence, np.float32), np.diff(action_cu_seqlens))
    return spread


def whiten(
    advantages: Float32[Float32Array, "A"],
    mask: Bool[BoolArray, "A"],
    sum_over_ranks: SumOverRanks | None = None,
    *,
    centre: bool = True,
    epsilon: float = 1e-8,
) -> Float32[Float32Array, "A"]:
    """``[A]`` of zero mean and unit variance over the masked-in actions of all ranks; masked-out ones become 0.

    Without `centre` only the scale changes, to a mean square of 1: zeros stay zeros and signs stay signs. That is for
    advantages that have their baseline already (groups): their mean over *tokens* is not 0 where lengths differ, and
    taking it away would give a group of equal rewards an advantage.

    For actor advantages only, never for value targets, never per micro-batch. Every rank must call it, also one
    whose share is empty: `sum_over_ranks` (see `vcppo.learner.engine.deepspeed_engine.sum_over_ranks`) is a collective.
    Two rounds, because E[x^2] - E[x]^2 loses all digits when the mean is large.
    """
    reduce = sum_over_ranks if sum_over_ranks is not None else _identity
    kept = advantages[mask].astype(np.float64)
    total, count = reduce(np.array([kept.sum(), kept.size], np.float64))
    mean = total / max(count, 1.0) if centre else 0.0
    (squares,) = reduce(np.array([np.square(kept - mean).sum()], np.float64))
    std = np.sqrt(squares / max(count, 1.0))
    return np.where(mask, (advantages - mean) / (std + epsilon), 0.0).astype(np.float32)


def _identity(vector: Float64Array) -> Float64Array:
    return vector


def _above_least(
    rewards: Float[NDArray[np.floating], "S"], group: Int64[Int64Array, "S"]
) -> Float64[Float64Array, "S"]:
    """``[S]`` rewards less the least one of their group. Baselines don't feel it, but equal rewards become 0, whose
    mean is 0; the mean of three times 0.1 is not 0.1."""
    rewards64 = np.asarray(rewards, np.float64)
    least = np.full(int(group.max(initial=-1)) + 1, np.inf)
    np.minimum.at(least, group, rewards64)
    above: Float64Array = rewards64 - least[group]
    return above


def _groups(group_ids: Sequence[str]) -> tuple[Int64[Int64Array, "S"], Int64[Int64Array, "G"]]:
    """Group number of each sequence ``[S]`` and size of each group."""
    _, group, count = np.unique(
        np.asarray(group_ids, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    return group.astype(np.int64), count.astype(np.int64)

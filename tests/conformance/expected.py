"""What the paper's formulas give for some shards: float64, by the literal transcription in `tests/unit/rig/oracle.py`.

The transcription is quadratic in T, so of a long response only some positions are worked out; the others are NaN here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from tests.conformance.interface import Settings, Shard
from tests.unit.rig import oracle

ALL_POSITIONS_UP_TO = 128

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """``[S, W]`` of one shard, NaN where nothing is expected; `advantages` before whitening."""

    advantages: Float64Array
    value_targets: Float64Array
    trained: NDArray[np.bool_]


def expected(shard: Shard, settings: Settings) -> Expected:
    if settings.kind != "gae":
        return _of_groups(shard, settings)
    advantages, targets = np.full((2, *shard.rewards.shape), np.nan)
    trained = shard.action_mask.copy()
    for s, length in enumerate(shard.lengths):
        actions = np.flatnonzero(shard.action_mask[s, :length])
        cut = shard.finish_reasons[s] == "length"
        rewards = [0.0] * len(actions)
        # What the environment pays on tool text, or anywhere, is for the action before it.
        for token in np.flatnonzero(shard.rewards[s, :length]):
            rewards[int(np.searchsorted(actions, token, side="right")) - 1] += float(shard.rewards[s, token])
        final_value = 0.0
        if cut and settings.truncation == "bootstrap":
            rewards, final_value = [0.0] * len(actions), float(shard.values[s, length])
        if cut and settings.truncation == "mask":
            trained[s] = False
        values = shard.values[s, actions].tolist()
        for t in positions(len(actions)):
            at = (s, actions[t])
            rest = (rewards, values, final_value)
            advantages[at] = oracle.gae_at(*rest, t, settings.lambda_actor, settings.gamma)
            targets[at] = values[t] + oracle.gae_at(*rest, t, settings.lambda_critic, settings.gamma)
    return Expected(advantages, targets, trained)


def _of_groups(shard: Shard, settings: Settings) -> Expected:
    """Exact fractions: a group of equal rewards has a mean that is equal to them. Value targets are not made.

    REINFORCE++ before whitening, without a KL: the outcome at each action, in its variant less the group's mean.
    """
    outcomes = [Fraction(float(outcome)) for outcome in shard.rewards.sum(axis=1)]
    advantages = np.full(shard.rewards.shape, np.nan)
    for s, outcome in enumerate(outcomes):
        group = [outcomes[i] for i, other in enumerate(shard.groups) if other == shard.groups[s]]
        mean = sum(group, Fraction(0)) / len(group)
        if settings.kind == "group_mean":
            std = math.sqrt(sum((each - mean) ** 2 for each in group) / len(group))
            advantage = float(outcome - mean) / (std or 1.0)
        elif settings.kind == "reinforce_plus_plus":
            advantage = float(outcome)
        elif settings.kind == "reinforce_plus_plus_baseline":
            advantage = float(outcome - mean)
        else:
            num_others = len(group) - 1
            advantage = float(outcome - (sum(group) - outcome) / num_others) if num_others else 0.0
        advantages[s, shard.action_mask[s]] = advantage
    return Expected(advantages, np.full_like(advantages, np.nan), shard.action_mask.copy())


def positions(num_actions: int) -> Sequence[int]:
    """Every position of a short response, a dozen of a long one: both ends and some between."""
    if num_actions <= ALL_POSITIONS_UP_TO:
        return range(num_actions)
    between = np.linspace(3, num_actions - 4, 6).astype(int).tolist()
    return [0, 1, 2, *between, num_actions - 3, num_actions - 2, num_actions - 1]


def whitened(each: Sequence[Expected], ddof: int, *, centre: bool = True) -> list[Float64Array]:
    """Zero mean and unit variance over what is trained on in all shards; ``ddof`` 0 or 1: both are in use.

    Without `centre`, for group baselines, only the scale: a mean square of 1.
    """
    kept = np.concatenate([one.advantages[one.trained] for one in each])
    if not centre:
        root = float(np.sqrt(np.square(kept).sum() / max(1, kept.size - ddof)))
        return [one.advantages / (root or 1.0) for one in each]
    mean = kept.mean() if kept.size else 0.0
    std = float(np.std(kept, ddof=ddof)) if kept.size > ddof else 0.0
    return [(one.advantages - mean) / (std or 1.0) for one in each]

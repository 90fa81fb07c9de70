"""Is the critic worth it? What it explains of Monte-Carlo returns, beside what the prompt's mean explains of the same.

The rival costs nothing: predict each response's return, at every token, by the mean return of the *other* responses to
its prompt. The others, because a mean with the response itself in it has seen the answer (with n responses it would
explain 1/n of pure noise). That is the baseline of leave-one-out GRPO. A response without companions has no such mean;
it is left out on both sides, so the two numbers are always of the same tokens. Conversations of one rollout are one
response: they share its outcome, so none of them is another's companion.

Within a prompt the rival can't win: it knows the prompt, not the response, and the n − 1 others lean the other way by
1/(n − 1), so it scores 1 − (n / (n − 1))² < 0. What the critic explains there is what only a critic can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from vcppo.learner.critic_quality.explained_variance import (
    CRUMBS,
    NUM_DECILES,
    Float64Array,
    FloatArray,
    Int64Array,
    explained,
    less_group_mean,
    position_deciles,
)


@dataclass(frozen=True, slots=True)
class Explained:
    """Explained variance of one predictor; None is undefined (the returns don't vary there, or there are none).

    Attributes:
        token: every action counts once.
        sequence: every response counts once.
        within_prompt: as sequence, of returns and predictions less their means over the prompt's responses.
        by_position: as token, in each tenth of the response.
        by_staleness: as token, of responses of staleness 0, 1, ...; the last bucket takes what is older.
    """

    token: float | None
    sequence: float | None
    within_prompt: float | None
    by_position: list[float | None]
    by_staleness: list[float | None]


@dataclass(frozen=True, slots=True)
class CriticWorth:
    """Both predictors on the same `num_responses` responses: those whose prompt has another."""

    critic: Explained
    prompt_mean: Explained
    num_responses: int


def critic_worth(
    values: Float[FloatArray, "A"],
    returns: Float[FloatArray, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    group_ids: Sequence[str],
    staleness: Int64[Int64Array, "S1-1"],
    num_buckets: int,
    rollouts: Int64[Int64Array, "S1-1"] | None = None,
) -> CriticWorth:
    """Compare over a batch: all of it, the same on every rank, so nothing is to be summed over ranks.

    Args:
        values, returns: ``[A]`` V before each action, and Monte-Carlo returns.
        action_cu_seqlens: ``[S+1]``. A response's outcome is its return at its first action (gamma = 1: everywhere).
        group_ids, staleness: ``[S]``.
        num_buckets: of staleness, at least 1.
        rollouts: ``[S]`` which rollout each sequence is of, from 0, rising: one of several conversations is one
            response. None: each is one of its own.
    """
    lengths = np.diff(action_cu_seqlens)
    _, group = np.unique(np.asarray(group_ids, dtype=str), return_inverse=True)
    numbers = np.arange(len(lengths)) if rollouts is None else rollouts
    _, first = np.unique(numbers, return_index=True)  # whose return is the rollout's
    others, has_others = _mean_of_others(np.asarray(returns, np.float64), action_cu_seqlens, group, first)
    num_responses = int(has_others.sum())
    others, has_others = others[numbers], has_others[numbers]
    keep = np.repeat(has_others, lengths)
    view = _View(
        returns=np.asarray(returns, np.float64)[keep],
        share=np.repeat(1.0 / np.maximum(lengths, 1), lengths)[keep],
        group=np.repeat(group, lengths)[keep],
        decile=position_deciles(action_cu_seqlens)[keep],
        bucket=np.repeat(np.clip(staleness, 0, num_buckets - 1), lengths)[keep],
        num_buckets=num_buckets,
    )
    return CriticWorth(
        critic=_explained_by(np.asarray(values, np.float64)[keep], view),
        prompt_mean=_explained_by(np.repeat(others, lengths)[keep], view),
        num_responses=num_responses,
    )


@dataclass(frozen=True, slots=True)
class _View:
    """Of the kept actions ``[K]``: what is predicted, and the buckets it is looked at in."""

    returns: Float64[Float64Array, "K"]
    share: Float64[Float64Array, "K"]
    group: Int64[Int64Array, "K"]
    decile: Int64[Int64Array, "K"]
    bucket: Int64[Int64Array, "K"]
    num_buckets: int


def _explained_by(predicted: Float64[Float64Array, "K"], view: _View) -> Explained:
    ones = np.ones(len(predicted))
    return Explained(
        token=explained(predicted, view.returns, ones),
        sequence=explained(predicted, view.returns, view.share),
        within_prompt=explained(
            less_group_mean(predicted, view.group, view.share),
            less_group_mean(view.returns, view.group, view.share),
            view.share,
        ),
        by_position=_by_bucket(predicted, view.returns, view.decile, NUM_DECILES),
        by_staleness=_by_bucket(predicted, view.returns, view.bucket, view.num_buckets),
    )


def _by_bucket(
    predicted: Float64[Float64Array, "K"], returns: Float64[Float64Array, "K"], bucket: Int64[Int64Array, "K"], num: int
) -> list[float | None]:
    """`explained` in each of the buckets, in one pass over all."""
    if not len(returns):
        return [None] * num
    ones = np.ones(len(returns))
    errors = np.bincount(bucket, np.square(less_group_mean(returns - predicted, bucket, ones)), minlength=num)
    squares = np.bincount(bucket, np.square(less_group_mean(returns, bucket, ones)), minlength=num)
    count = np.bincount(bucket, minlength=num)
    crumbs = CRUMBS * max(1.0, float(np.abs(returns).max()) ** 2)
    return [
        1.0 - float(error / square) if n and square / n > crumbs else None
        for error, square, n in zip(errors, squares, count, strict=True)
    ]


def _mean_of_others(
    returns: Float64[Float64Array, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    group_of_sequence: Int64[Int64Array, "S1-1"],
    first: Int64[Int64Array, "R"],
) -> tuple[Float64[Float64Array, "R"], Bool[NDArray[np.bool_], "R"]]:
    """``[R]`` mean outcome of the group's other rollouts, 0 without one; ``[R]`` whether there is one."""
    group = group_of_sequence[first]
    has_actions = np.diff(action_cu_seqlens)[first] > 0
    outcome = np.zeros(len(group))
    outcome[has_actions] = returns[action_cu_seqlens[:-1][first][has_actions]]
    count = np.bincount(group, has_actions)[group] if len(group) else np.zeros(0)
    total = np.bincount(group, outcome)[group] if len(group) else np.zeros(0)
    has_others = has_actions & (count > 1)
    return np.where(has_others, (total - outcome) / np.maximum(count - 1, 1), 0.0), has_others

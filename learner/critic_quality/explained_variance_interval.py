"""Explained variance by token over prompts, and how sure it is (`vcppo.common.evaluation.over_prompts`). Pure.

Everything is made from five sums a prompt: the number of actions, and sums of r, r², e, e², with e = r - v and r less
its mean. So figures of several critics may be put together prompt by prompt (`choose_and_measure`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray

from vcppo.common.evaluation.over_prompts import Figure, Sums, over_prompts
from vcppo.common.records.seeds import derive_seed
from vcppo.learner.critic_quality.explained_variance import CRUMBS, FloatArray, Int64Array


def sums_by_prompt(
    values: Float[FloatArray, "A"],
    returns: Float[FloatArray, "A"],
    action_cu_seqlens: Int64[Int64Array, "S1"],
    group_ids: Sequence[str],
) -> tuple[list[str], Float64[Sums, "G 5"]]:
    """(prompts in sorted order, their sums).

    Args:
        values, returns: ``[A]``.
        action_cu_seqlens: ``[S+1]``.
        group_ids: ``[S]``.
    """
    r = np.asarray(returns, np.float64)
    e = r - np.asarray(values, np.float64)
    # A variance does not change when a constant is taken off; without it, differences of sums would lose digits. Not
    # off e: a critic's own constant would be missing where the sums of two critics are put together.
    r = r - (r.mean() if len(r) else 0.0)
    prompts, group = np.unique(np.asarray(group_ids, dtype=str), return_inverse=True)
    of_action = np.repeat(group, np.diff(action_cu_seqlens))
    columns = (np.ones_like(r), r, r * r, e, e * e)
    sums: Sums = np.stack(
        [np.bincount(of_action, column, minlength=len(prompts)) for column in columns], axis=1
    ).astype(np.float64)
    return [str(prompt) for prompt in prompts], sums


def explained_by(sums: Float64[Sums, "*rows 5"]) -> Float64[NDArray[np.float64], "*rows"]:
    """1 - Var(e) / Var(r) from summed rows ``[..., 5]``; NaN where r does not vary."""
    count, r, rr, e, ee = np.moveaxis(np.asarray(sums, np.float64), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = rr / count - np.square(r / count)
        error = ee / count - np.square(e / count)
        figure = 1.0 - error / variance
    return np.where(variance > CRUMBS * np.maximum(1.0, rr / np.maximum(count, 1.0)), figure, np.nan)


def measure(sums: Float64[Sums, "G 5"], seed: int) -> Figure:
    """The figure over all prompts, and its interval, from their ``[G, 5]`` sums."""
    return over_prompts(sums, explained_by, seed)


def choose_and_measure(prompts: Sequence[str], measured: Sequence[Float64[Sums, "G 5"]], seed: int) -> Figure:
    """What the best of several critics explains, without the luck of having been chosen.

    The best of several noisy figures is too high on average. So the prompts are halved: the critic that is best on one
    half is measured on the other, and the other way round (two-fold cross-validation).

    Args:
        prompts: ``G``, as `sums_by_prompt` gives them.
        measured: ``[G, 5]`` of each critic, on the same prompts.
    """
    order = sorted(range(len(prompts)), key=lambda i: (derive_seed(seed, "halves", prompts[i]), prompts[i]))
    first = np.zeros(len(prompts), np.bool_)
    first[order[: len(prompts) // 2]] = True
    everywhere = _best(measured, np.ones(len(prompts), np.bool_))
    if everywhere is None:
        return Figure(None, None)
    judged = np.empty_like(measured[0])
    for half in (first, ~first):
        best = _best(measured, ~half)  # chosen where it is not measured
        judged[half] = measured[everywhere if best is None else best][half]
    return measure(judged, seed)


def _best(measured: Sequence[Float64[Sums, "G 5"]], chosen: Bool[NDArray[np.bool_], "G"]) -> int | None:
    """The critic that explains most of the chosen prompts; None where the returns don't vary."""
    found = [float(explained_by(sums[chosen].sum(axis=0))) for sums in measured]
    defined = [index for index, value in enumerate(found) if np.isfinite(value)]
    return max(defined, key=lambda index: found[index]) if defined else None

"""One estimator on one case: pass, fail with where and by how much, or not offered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from tests.conformance.cases import Case
from tests.conformance.expected import Expected, Float64Array, expected, whitened
from tests.conformance.interface import Estimate, Estimator, Unsupported

Status = Literal["pass", "fail", "not offered"]


class Result(NamedTuple):
    case: Case
    status: Status
    detail: str


class _Difference(NamedTuple):
    size: float
    text: str


def check(estimator: Estimator, case: Case) -> Result:
    try:
        given = estimator.estimate(case.shards, case.settings)
    except Unsupported as reason:
        return Result(case, "not offered", str(reason))
    except Exception as error:  # noqa: BLE001  (the estimator is anybody's code: what it raises is the finding)
        return Result(case, "fail", f"{type(error).__name__}: {error}")
    if len(given) != len(case.shards):
        return Result(case, "fail", f"{len(given)} estimates of {len(case.shards)} shards")
    wanted = [expected(shard, case.settings) for shard in case.shards]
    found = _trained(given, wanted) or _worst(given, wanted, case)
    if found is None:
        return Result(case, "pass", "")
    return Result(case, "fail", found)


def _trained(given: Sequence[Estimate], wanted: Sequence[Expected]) -> str | None:
    for number, (mine, paper) in enumerate(zip(given, wanted, strict=True)):
        for name in ("advantages", "value_targets"):
            shape = np.shape(getattr(mine, name))
            if shape != paper.trained.shape:
                return f"shard {number}: {name} of shape {shape}, not {paper.trained.shape}"
        if mine.trained is not None and (mine.trained != paper.trained).any():
            return f"shard {number}: {int(mine.trained.sum())} actions trained on, not {int(paper.trained.sum())}"
        if mine.trained is None and not paper.trained.any(axis=1).all():
            return f"shard {number}: trains on a response that is masked"
    return None


def _worst(given: Sequence[Estimate], wanted: Sequence[Expected], case: Case) -> str | None:
    """The largest difference in words, if it is more than the tolerance."""
    raw = [one.advantages for one in wanted]
    centre = case.settings.centres
    choices = [whitened(wanted, ddof, centre=centre) for ddof in (0, 1)] if case.settings.whiten else [raw]
    by_choice = [_largest("advantage", [g.advantages for g in given], advantages, wanted) for advantages in choices]
    targets = _largest("value target", [g.value_targets for g in given], [w.value_targets for w in wanted], wanted)
    if case.exact_targets:
        targets = _inexact(given, wanted, case) or _Difference(0.0, "")
        if targets.size:
            return targets.text
    if not centre and (found := _not_zero(given, wanted)) is not None:
        return found
    worst = max(min(by_choice), targets)
    return worst.text if not worst.size <= case.tolerance else None


def _largest(
    name: str, given: Sequence[np.ndarray], wanted: Sequence[Float64Array], each: Sequence[Expected]
) -> _Difference:
    worst = _Difference(0.0, "")
    for shard, (mine, paper, one) in enumerate(zip(given, wanted, each, strict=True)):
        looked_at = np.argwhere(one.trained & ~np.isnan(paper))
        for row, column in looked_at:
            size = abs(float(mine[row, column]) - float(paper[row, column]))
            size = float("inf") if np.isnan(size) else size
            if size > worst.size:
                where = f"response {row}, token {column}" + (f", rank {shard}" if len(given) > 1 else "")
                said = f"{name} {float(mine[row, column]):.4f}, by the paper {float(paper[row, column]):.4f}"
                worst = _Difference(size, f"{said} ({where})")
    return worst


def _not_zero(given: Sequence[Estimate], wanted: Sequence[Expected]) -> str | None:
    """A group of equal rewards teaches nothing: exactly, not nearly, and not a share of what whitening takes away."""
    off = [np.abs(mine.advantages[paper.advantages == 0.0]) for mine, paper in zip(given, wanted, strict=True)]
    largest = max((float(each.max()) for each in off if each.size), default=0.0)
    return f"advantage {largest:.1e} where all rewards of the group are alike" if largest else None


def _inexact(given: Sequence[Estimate], wanted: Sequence[Expected], case: Case) -> _Difference | None:
    for mine, paper, shard in zip(given, wanted, case.shards, strict=True):
        outcomes = np.broadcast_to(shard.rewards.sum(axis=1, keepdims=True), shard.rewards.shape)
        off = np.abs(np.asarray(mine.value_targets, np.float32) - outcomes)[paper.trained]
        if off.size and off.max() > 0:
            return _Difference(
                float(off.max()), f"value targets off by up to {off.max():.1e} (rounding of V + (R − V))"
            )
    return None

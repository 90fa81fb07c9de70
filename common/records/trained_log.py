"""Reading ``trained.jsonl``: the proof, from a run's own files, that no trajectory was trained twice or too old."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vcppo.common.errors import VcppoError
from vcppo.common.files.json_lines import read_json_lines


class TrainedStep(BaseModel):
    """A line: ``staleness`` is in the order of the ids, a rollout each.

    ``segment_ids`` are of the trajectories that were trained beside: other conversations of these rollouts.
    """

    model_config = ConfigDict(strict=True)

    step: int
    policy_version: int
    prompt_ids: list[str]
    trajectory_ids: list[str]
    staleness: list[int]
    segment_ids: list[str] = []


def read_trained_log(path: Path) -> dict[int, dict[str, Any]]:
    """Step → its last line. Torn lines (a crash in the middle of a write) are passed over."""
    return {entry.step: entry.model_dump() for entry in _lines(path)}


def _lines(path: Path) -> Iterator[TrainedStep]:
    for row in read_json_lines(path):
        with suppress(ValidationError):
            yield TrainedStep.model_validate(row)


def check_trained_once(path: Path, max_staleness: int) -> int:
    """How many rollouts were trained. Raises VcppoError if one was twice, or one was older than the bound."""
    steps = read_trained_log(path)
    for key in ("prompt_ids", "trajectory_ids", "segment_ids"):
        counts = Counter(name for entry in steps.values() for name in entry[key])
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise VcppoError(f"{path}: {len(twice)} {key} were trained more than once, e.g. {twice[:3]}")
    oldest = max((number for entry in steps.values() for number in entry["staleness"]), default=0)
    if oldest > max_staleness:
        raise VcppoError(f"{path}: a trajectory of staleness {oldest} was trained; rl.max_staleness = {max_staleness}")
    return sum(len(entry["prompt_ids"]) for entry in steps.values())


def replays_differ(path: Path, rejected: Collection[str] = ()) -> list[int]:
    """Steps that were trained again after a crash on other trajectories than before: none, if nothing is lost.

    Args:
        rejected: prompts that may be missing from a replay: they were given up meanwhile, each with a dead letter.
    """
    first: dict[int, list[str]] = {}
    differing: list[int] = []
    for entry in _lines(path):
        pairs = zip(entry.prompt_ids, entry.trajectory_ids, strict=False)
        kept = [trajectory_id for prompt_id, trajectory_id in pairs if prompt_id not in rejected]
        if first.setdefault(entry.step, kept) != kept:
            differing.append(entry.step)
    return differing

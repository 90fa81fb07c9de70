"""``trained.jsonl``: which trajectories each step trained on, for people and for proofs.

One JSON line per trained step, on disk before anything of it is committed. A step replayed after a crash is written
again (same step, same ids); the last line of a step counts.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import VcppoError
from learner.batch import Batch


class TrainedStep(BaseModel):
    """A line: ``staleness`` is in the order of the ids."""

    model_config = ConfigDict(strict=True)

    step: int
    policy_version: int
    prompt_ids: list[str]
    trajectory_ids: list[str]
    staleness: list[int]


class TrainedLog:
    """Appends durably; a line torn by a crash is closed off first."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("ab")
        if not _ends_with_newline(path):
            self._file.write(b"\n")

    def append(self, step: int, batch: Batch) -> None:
        line = TrainedStep(
            step=step,
            policy_version=batch.version,
            prompt_ids=batch.prompt_ids,
            trajectory_ids=[trajectory.id for trajectory in batch.trajectories],
            staleness=batch.staleness.tolist(),
        )
        self._file.write(line.model_dump_json().encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _ends_with_newline(path: Path) -> bool:
    """True of an empty file, too."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 1))
        return file.read(1) in (b"", b"\n")


def read_trained_log(path: Path) -> dict[int, dict[str, Any]]:
    """Step → its last line. Torn lines (a crash in the middle of a write) are passed over."""
    steps: dict[int, dict[str, Any]] = {}
    if not path.exists():
        return steps
    with path.open("rb") as file:
        for line in file:
            try:
                entry = TrainedStep.model_validate_json(line)
            except ValidationError:
                continue
            steps[entry.step] = entry.model_dump()
    return steps


def check_trained_once(path: Path, max_staleness: int) -> int:
    """How many trajectories were trained. Raises VcppoError if one was twice, or one was older than the bound."""
    steps = read_trained_log(path)
    for key in ("prompt_ids", "trajectory_ids"):
        counts = Counter(name for entry in steps.values() for name in entry[key])
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise VcppoError(f"{path}: {len(twice)} {key} were trained more than once, e.g. {twice[:3]}")
    oldest = max((number for entry in steps.values() for number in entry["staleness"]), default=0)
    if oldest > max_staleness:
        raise VcppoError(f"{path}: a trajectory of staleness {oldest} was trained; rl.max_staleness = {max_staleness}")
    return sum(len(entry["prompt_ids"]) for entry in steps.values())

"""``trained.jsonl``: which trajectories each step trained on, for people and for proofs.

`vcppo.common.records.trained_log` reads it.

One JSON line per trained step, on disk before anything of it is committed. A step replayed after a crash is written
again (same step, same ids); the last line of a step counts.
"""

from __future__ import annotations

import os
from pathlib import Path

from vcppo.common.files.json_lines import open_to_append
from vcppo.common.records.trained_log import TrainedStep, check_trained_once, read_trained_log
from vcppo.learner.batching.batch import Batch

__all__ = ["TrainedLog", "check_trained_once", "read_trained_log"]


class TrainedLog:
    """Appends durably; a line torn by a crash is closed off first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_to_append(path)

    def append(self, step: int, batch: Batch) -> None:
        """One line for a step and its batch, on disk when this returns."""
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
        """Close the file; every line is on disk already."""
        self._file.close()

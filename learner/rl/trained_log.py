"""``trained.jsonl``: which trajectories each step trained on, for people and for proofs.

`vcppo.common.records.trained_log` reads it.

One JSON line per trained step, on disk before anything of it is committed. A step replayed after a crash is written
again (same step, same ids); the last line of a step counts.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vcppo.common.files.json_lines import LineFile
from vcppo.common.process.patience import patiently
from vcppo.common.records.trained_log import TrainedStep, check_trained_once, read_trained_log
from vcppo.learner.batching.batch import Batch

__all__ = ["TrainedLog", "check_trained_once", "read_trained_log"]


class TrainedLog:
    """Appends durably, and waits while there is no room: nothing is committed that is not written here.

    Args:
        stopping: whether the process was asked to stop; then it does not wait.
    """

    def __init__(self, path: Path, stopping: Callable[[], bool] = lambda: False) -> None:
        self.path = path
        self._file, self._stopping = LineFile(path), stopping

    def append(self, step: int, batch: Batch) -> None:
        """One line for a step and its batch, on disk when this returns.

        Raises:
            ResourceExhausted: there was no room when we were asked to stop.
        """
        line = TrainedStep(
            step=step,
            policy_version=batch.version,
            prompt_ids=batch.prompt_ids,
            trajectory_ids=[rollout.id for rollout in batch.rollouts],
            staleness=[batch.version - rollout.oldest_version for rollout in batch.rollouts],
            segment_ids=sorted({each.id for each in batch.trajectories} - {each.id for each in batch.rollouts}),
        )
        text = line.model_dump_json(exclude_defaults=True).encode() + b"\n"
        patiently(lambda: self._file.write(text, sync=True), "trained.jsonl", self.path.parent, self._stopping)

    def close(self) -> None:
        """Close the file; every line is on disk already."""
        self._file.close()

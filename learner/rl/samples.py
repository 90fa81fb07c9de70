"""Responses of RL steps, kept for people: ``samples/step-000012.msgpack``, read by `vcppo samples`.

A few a step, of all kinds: outcomes and finish reasons take turns, the rarest first, so that the one right response of
a batch is among them. Which ones follows from the batch alone, so a step that is done again keeps the same.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import blake2b
from itertools import zip_longest
from pathlib import Path

import structlog

from vcppo.common.config import MetricsConfig
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.trajectory_records import pack_record
from vcppo.common.records.wire import encode_trajectory

log = structlog.get_logger(__name__)


def choose_samples(trajectories: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """At most ``count`` of them, the kinds (outcome and finish reason) in turn, the rarest first."""
    kinds: dict[tuple[str, str], list[Trajectory]] = defaultdict(list)
    for trajectory in sorted(trajectories, key=_place):
        kinds[trajectory.outcome, trajectory.finish_reason].append(trajectory)
    by_rarity = sorted(kinds.values(), key=len)
    in_turn = [each for turn in zip_longest(*by_rarity) for each in turn if each is not None]
    return in_turn[:count]


class SampleWriter:
    """Rank 0: one file a step, whole or not there; the oldest go when all of them are too large."""

    def __init__(self, folder: Path, config: MetricsConfig) -> None:
        self._folder, self._config = folder, config

    def write(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Keep some of the step. A disk that refuses costs the samples, not the step."""
        if not self._config.samples_per_step:
            return
        path = self._folder / f"step-{step:06d}.msgpack"
        chosen = choose_samples(trajectories, self._config.samples_per_step)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, b"".join(pack_record(encode_trajectory(each)) for each in chosen))
            self._remove_oldest(path)
        except OSError as error:
            log.warning("samples_not_written", step=step, file=str(path), error=str(error))

    def _remove_oldest(self, newest: Path) -> None:
        sizes = [(path, path.stat().st_size) for path in sorted(self._folder.glob("step-*.msgpack"))]
        left = sum(size for _, size in sizes)
        for path, size in sizes:
            if left <= self._config.samples_mib * 2**20 or path == newest:
                return
            path.unlink()
            left -= size


def _place(trajectory: Trajectory) -> bytes:
    """By chance, but the same chance each time: else the first prompts of a batch would stand for all."""
    return blake2b(trajectory.id.encode(), digest_size=8).digest()

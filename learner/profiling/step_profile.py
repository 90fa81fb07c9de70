"""Profiles of the steps in learner.profile_steps, in ``<run>/profiles``. A profile that fails costs no step.

step_12.learner.rank0.json.gz      each rank: torch's profiler, Chrome's format
step_12.generator-0.svg            rank 0: a flame graph of each process of its machine (py-spy)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import monotonic

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.run_folder import RunFolder
from vcppo.learner.profiling.flame_graphs import flame_graphs
from vcppo.learner.profiling.torch_trace import torch_trace

log = structlog.get_logger(__name__)


class StepProfile:
    """One rank's. `of` goes around a step."""

    def __init__(self, config: VcppoConfig, rank: int) -> None:
        self._steps = frozenset(config.learner.profile_steps)
        self._folder, self._rank = RunFolder(config.run.path), rank

    @contextmanager
    def of(self, step: int) -> Iterator[None]:
        """Profiles what runs in it; nothing at other steps. What it raises is not touched."""
        if step not in self._steps:
            yield
            return
        began = monotonic()
        watchdog.stage("profile")
        folder = self._folder.profiles
        graphs: AbstractContextManager[None] = nullcontext()
        if self._rank == 0:
            graphs = flame_graphs(folder, step, self._folder.processes)
        with torch_trace(folder / f"step_{step}.learner.rank{self._rank}.json.gz"), graphs:
            yield
            watchdog.stage("profile")
        log.info("step_profiled", step=step, folder=str(folder), seconds=round(monotonic() - began, 1))

"""Faults of what a process may use up: files that can't grow any more, as on a full disk, and no file left to open.

By limits of the live process (`vcppo.deploy.chaos.shortages`): a real disk would be the machine's. It must say what is
missing, wait, and go on by itself when the limit is what it was.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
from collections.abc import Callable, Sequence

from vcppo.deploy.chaos.faults.scene import Blow, Scene
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.chaos.shortages import LoweredLimit

_NO_BYTES = 1  # one: a limit of nothing is refused by some kernels


def fill_disk(scene: Scene, fault: Fault) -> Blow | None:
    """No file of the learner grows."""
    return _lower(scene, fault, resource.RLIMIT_FSIZE, lambda pid: _NO_BYTES)


def exhaust_files(scene: Scene, fault: Fault) -> Blow | None:
    """The learner can open no more files than it has."""
    return _lower(scene, fault, resource.RLIMIT_NOFILE, first_free_number)


def first_free_number(pid: int) -> int:
    """The lowest number that none of the process' files has: the limit is on numbers, and there are gaps."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    return next(number for number in itertools.count() if number not in taken)


def _lower(scene: Scene, fault: Fault, limit: int, value: Callable[[int], int]) -> Blow | None:
    learners = scene.up("learner")
    if not learners:
        return None
    lowered = [LoweredLimit(pid, limit, value(pid)) for pid in scene.pids(learners[0])]
    before = scene.watch.num_shortages

    def noticed() -> bool:
        if scene.watch.num_shortages > before:
            return True
        for each in lowered:  # a file that was open by chance at the strike has left a number free since
            if each not in scene.lowered:  # undone
                continue
            with contextlib.suppress(ProcessLookupError, FileNotFoundError):  # it has ended, which is no notice
                each.lower(value(each.pid))
        return False

    for each in lowered:
        each.strike()
    scene.lowered += lowered
    return Blow(
        fault, learners[0].spec.name, scene.limit, over=noticed, achieved=noticed,
        undo=lambda: _raise_again(scene, lowered), alone=True,
    )  # fmt: skip


def _raise_again(scene: Scene, lowered: Sequence[LoweredLimit]) -> None:
    for each in lowered:
        each.undo()
        scene.lowered.remove(each)

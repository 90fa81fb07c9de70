"""Faults of the run's own processes: killed, asked to stop, frozen; generators that join and leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from vcppo.deploy.chaos.faults.scene import Blow, Scene, freeze_seconds
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.processes.supervisor import Child

FREEZER = str(Path(__file__).with_name("freezer.py"))
_FREEZER_SLACK_SECONDS = 30.0


def kill(scene: Scene, fault: Fault) -> Blow | None:
    """SIGKILL; of a learner of many ranks, one of them or torchrun."""
    child = scene.pick(fault)
    if child is None:
        return None
    pids = scene.pids(child)
    pid = fault.pick(pids)
    os.kill(pid, signal.SIGKILL)
    return Blow(fault, _named(child, pids, pid))


def terminate(scene: Scene, fault: Fault) -> Blow | None:
    """SIGTERM, to torchrun where there is one: it asks all ranks."""
    child = scene.pick(fault)
    if child is None:
        return None
    os.kill(child.pid, signal.SIGTERM)
    return Blow(fault, child.spec.name)


def freeze(scene: Scene, fault: Fault) -> Blow | None:
    """SIGSTOP for longer than every deadline that watches it."""
    child = scene.pick(fault)
    if child is None:
        return None
    pids = scene.pids(child)
    pid = fault.pick(pids[1:] or pids)
    scene.stop([pid])
    seconds = freeze_seconds(child.spec.role, scene.config) * fault.stretch
    return Blow(fault, _named(child, pids, pid), seconds, undo=lambda: scene.resume([pid]))


def freeze_launcher(scene: Scene, fault: Fault) -> Blow | None:
    """This process stands still, and with it every link: as a machine that slept. A helper wakes it up again.

    Returns when it is over: nobody could have done anything meanwhile.
    """
    seconds = freeze_seconds("launcher", scene.config) * fault.stretch
    helper = [sys.executable, "-I", "-S", FREEZER, str(os.getpid()), f"{seconds:.1f}"]
    done = subprocess.run(helper, check=False, timeout=seconds + _FREEZER_SLACK_SECONDS)
    return Blow(fault, f"launcher for {seconds:.0f} s", achieved=lambda: done.returncode == 0)


def fill_spool(scene: Scene, fault: Fault) -> Blow | None:
    """Buffers stand still until a generator says that its spool is full."""
    buffers = scene.up("buffer")
    if not buffers:
        return None
    pids = [child.pid for child in buffers]
    scene.stop(pids)
    before = scene.watch.num_spool_full

    def filled() -> bool:
        return scene.watch.num_spool_full > before

    return Blow(fault, "spool", scene.limit, over=filled, achieved=filled, undo=lambda: scene.resume(pids))


def add(scene: Scene, fault: Fault) -> Blow | None:
    """One more generator, where there is a place for it."""
    try:
        spec = scene.members.generator_spec(scene.next_index)
    except PlacementError:
        return None
    scene.next_index += 1
    child = scene.supervisor.start(spec)
    return Blow(
        fault,
        spec.name,
        scene.limit,
        over=lambda: child.ready,
        achieved=lambda: child.ready,
        mended=lambda: spec.name in scene.watch.members,
    )


def remove(scene: Scene, fault: Fault) -> Blow | None:
    """A generator is asked to leave; one must be left to go on."""
    candidates = scene.up("generator")
    if len(candidates) < 2:
        return None
    child = fault.pick(candidates)
    scene.supervisor.retire(child.spec.name)
    deadline = scene.config.launcher.stop_deadline_seconds
    return Blow(
        fault, child.spec.name, deadline, over=lambda: not child.alive, achieved=lambda: child.exit_code == 0
    )  # fmt: skip


def _named(child: Child, pids: list[int], pid: int) -> str:
    rank = pids.index(pid) - 1
    return child.spec.name if rank < 0 else f"{child.spec.name} rank {rank}"

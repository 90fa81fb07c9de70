"""Hostile peers that have the run's own keys: garbage at the data port and the control port, trajectories sent twice.

Each is a process of its own (`hostile_peer`), as keys and sockets are.
"""

from __future__ import annotations

import sys

from vcppo.common.run_folder import RunFolder
from vcppo.deploy.chaos.evidence import PEER_PREFIX
from vcppo.deploy.chaos.faults.scene import Blow, Scene
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.logs.log_lines import JSON_LOGS
from vcppo.deploy.processes.supervisor import ProcessSpec

ROLE = PEER_PREFIX.rstrip("-")
"""Of chaos' own processes: no part of the run."""


def besiege_buffer(scene: Scene, fault: Fault) -> Blow | None:
    """Messages that are none, and good ones of prompts that are not; every one must be refused by name."""
    return _besiege(scene, fault, "buffer", "data") if scene.up("buffer") else None


def besiege_generator(scene: Scene, fault: Fault) -> Blow | None:
    """Calls that are none; every one must be answered with an error, and no engine must end of it."""
    generators = scene.up("generator")
    if not generators:
        return None
    name = fault.pick(generators).spec.name
    blow = _besiege(scene, fault, f"control port of {name}", "control", "--generator", name)
    before = len(scene.watch.ends)
    blow.mended = lambda: not scene.watch.own_ends(name, before)
    return blow


def replay_trajectories(scene: Scene, fault: Fault) -> Blow | None:
    """What is buffered already comes once more: acknowledged as a duplicate, trained once."""
    return _besiege(scene, fault, "buffer", "replay") if scene.up("buffer") else None


def _besiege(scene: Scene, fault: Fault, target: str, what: str, *arguments: str) -> Blow:
    scene.num_programs += 1
    name = f"{PEER_PREFIX}{scene.num_programs}"
    config = str(RunFolder(scene.config.run.path).config)
    endpoints = ", ".join(scene.members.endpoints)
    spec = ProcessSpec(
        name=name,
        role=ROLE,
        command=[
            *(sys.executable, "-m", "vcppo.deploy.chaos.faults.hostile_peer", "--config", config),
            *("--what", what, "--name", name, "--seed", str(fault.number), "--seconds", f"{scene.limit:.0f}"),
            *(*arguments, f"redis.url={scene.members.redis_url}", f"transport.endpoints=[{endpoints}]", JSON_LOGS),
        ],
        is_ready=lambda record: True,
    )
    child = scene.supervisor.start(spec)

    def forget() -> None:
        if child.alive:
            scene.supervisor.retire(name)
        else:
            scene.supervisor.children.pop(name, None)

    return Blow(
        fault, target, 2 * scene.limit, over=lambda: not child.alive, undo=forget,
        achieved=lambda: scene.watch.sieges.get(name, {}).get("unanswered") == 0,
    )  # fmt: skip

"""Strikes: which function of `vcppo.deploy.chaos.faults` is for which kind. Chaos decides when."""

from __future__ import annotations

from collections.abc import Callable

from vcppo.deploy.chaos.faults import link_faults, payloads, peers, processes, resources, verifiers
from vcppo.deploy.chaos.faults.scene import Blow, Scene
from vcppo.deploy.chaos.schedule import Fault, Kind

Strike = Callable[[Scene, Fault], Blow | None]

BY_ACTION: dict[str, Strike] = {
    "kill": processes.kill,
    "terminate": processes.terminate,
    "freeze": processes.freeze,
    "cut": link_faults.cut,
    "block": link_faults.block,
    "fill": processes.fill_spool,
    "add": processes.add,
    "remove": processes.remove,
    "hang": verifiers.hang_verifier,
    "corrupt": payloads.corrupt_payload,
    "garble": payloads.garble_claimed,
    "replay": peers.replay_trajectories,
}
BY_KIND: dict[Kind, Strike] = {
    Kind.FILL_DISK: resources.fill_disk,
    Kind.EXHAUST_FILES: resources.exhaust_files,
    Kind.FREEZE_LAUNCHER: processes.freeze_launcher,
    Kind.KILL_VERIFIER: verifiers.kill_verifier,
    Kind.KILL_GUARDIAN: verifiers.kill_guardian,
    Kind.FREEZE_VERIFIER: verifiers.freeze_verifier,
    Kind.BESIEGE_BUFFER: peers.besiege_buffer,
    Kind.BESIEGE_GENERATOR: peers.besiege_generator,
}
"""Those whose target is no process that the launcher started."""


class Injector:
    """Strikes on one scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene

    def strike(self, fault: Fault) -> Blow | None:
        """Do it; None: there is nothing to hit at the moment."""
        return strike_of(fault.kind)(self.scene, fault)

    def undo_all(self) -> None:
        """Let everything run and flow again, whatever state chaos is in."""
        self.scene.undo_all()


def strike_of(kind: Kind) -> Strike:
    """What strikes a fault of this kind."""
    return BY_KIND.get(kind) or BY_ACTION[kind.action]

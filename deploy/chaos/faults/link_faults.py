"""Faults of the links between processes: connections reset and refused, or open and silent."""

from __future__ import annotations

from vcppo.common.store.redis_connection import SOCKET_TIMEOUT_SECONDS as REDIS_SOCKET_SECONDS
from vcppo.deploy.chaos.faults.scene import Blow, Scene, freeze_seconds
from vcppo.deploy.chaos.schedule import Fault

CUT_SECONDS = 3.0


def cut(scene: Scene, fault: Fault) -> Blow | None:
    """Reset all connections of a link and refuse new ones."""
    return _close(scene, fault, CUT_SECONDS)


def block(scene: Scene, fault: Fault) -> Blow | None:
    """Nothing goes through, for longer than the deadlines."""
    is_redis = fault.kind.target == "redis-link"
    return _close(scene, fault, REDIS_SOCKET_SECONDS if is_redis else freeze_seconds("buffer", scene.config))


def _close(scene: Scene, fault: Fault, seconds: float) -> Blow | None:
    names = [name for name in scene.links.names(fault.kind.target) if name not in scene.closed]
    if not names:
        return None
    name = fault.pick(names)
    (scene.links.cut if fault.kind.action == "cut" else scene.links.block)(name)
    scene.closed.add(name)
    return Blow(fault, name, seconds * fault.stretch, undo=lambda: scene.restore(name))

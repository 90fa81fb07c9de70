"""Faults of a generator's verifier or environment children: killed, frozen, hanging with a family that hides.

    generator ─▶ guardian ─▶ verifier ─▶ what a task starts        (`vcppo.common.process.guardian`)

What must hold of each: the generator has its verdict and another verifier, and nobody of the old family is left.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vcppo.common.process.family import GUARDIAN
from vcppo.deploy.chaos.faults.hanging_task import FLAG_OPTION
from vcppo.deploy.chaos.faults.scene import Blow, Scene, freeze_seconds, is_gone
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.processes.orphans import children_of

VERDICT_SLACK_SECONDS = 1.0
"""A verdict is there so long after the deadline, whatever the verifier or its children do."""
_MODULES = {b"vcppo.generator.verifying.verifier_child", b"vcppo.generator.turns.environment_child"}


class Verifier(NamedTuple):
    """A verifier that is up."""

    generator: str
    guardian: int
    pid: int


def kill_verifier(scene: Scene, fault: Fault) -> Blow | None:
    """SIGKILL to the verifier itself."""
    return _kill(scene, fault, lambda verifier: verifier.pid)


def kill_guardian(scene: Scene, fault: Fault) -> Blow | None:
    """SIGKILL to the guardian: the verifier must not go on unguarded."""
    return _kill(scene, fault, lambda verifier: verifier.guardian)


def freeze_verifier(scene: Scene, fault: Fault) -> Blow | None:
    """SIGSTOP until the generator has lost patience with it."""
    verifier = _pick(scene, fault)
    if verifier is None:
        return None
    scene.stop([verifier.pid])
    blow = _struck(scene, fault, verifier)
    blow.undo = lambda: scene.resume([verifier.pid])
    return blow


def hang_verifier(scene: Scene, fault: Fault) -> Blow | None:
    """The next verifier that is asked starts a child which hides, and hangs: `hanging_task`."""
    flag = Path(str(scene.config.task.options.get(FLAG_OPTION)))
    if not scene.up("generator"):
        return None
    told = flag.with_suffix(".json")
    told.unlink(missing_ok=True)
    flag.write_text("hang")
    deadline = freeze_seconds("verifier", scene.config) + VERDICT_SLACK_SECONDS

    def hung() -> dict[str, float]:
        return dict(json.loads(told.read_text())) if told.exists() else {}

    def verdict_at() -> float | None:
        since = hung().get("time")
        late = [at for at, _ in scene.watch.verifier_ends if since is not None and at >= since]
        return min(late, default=None)

    def in_time() -> bool:
        at = verdict_at()
        return at is not None and at - hung()["time"] <= deadline

    def mended() -> bool:
        return all(is_gone(int(pid)) for name, pid in hung().items() if name != "time")

    return Blow(
        fault, "a verifier", scene.limit, over=lambda: verdict_at() is not None, achieved=in_time, mended=mended,
        undo=lambda: flag.unlink(missing_ok=True), alone=True,
    )  # fmt: skip


def _pick(scene: Scene, fault: Fault) -> Verifier | None:
    found = [
        Verifier(child.spec.name, guardian, pid)
        for child in scene.up("generator")
        for guardian in children_of(child.pid)
        if GUARDIAN.encode() in _command(guardian)
        for pid in children_of(guardian)
        if not _MODULES.isdisjoint(_command(pid)) and pid not in scene.stopped
    ]
    return fault.pick(found) if found else None


def _kill(scene: Scene, fault: Fault, whom: Callable[[Verifier], int]) -> Blow | None:
    verifier = _pick(scene, fault)
    if verifier is None:
        return None
    os.kill(whom(verifier), signal.SIGKILL)
    return _struck(scene, fault, verifier)


def _struck(scene: Scene, fault: Fault, verifier: Verifier) -> Blow:
    before = scene.watch.num_verifier_ends(verifier.generator)

    def noticed() -> bool:
        return scene.watch.num_verifier_ends(verifier.generator) > before

    return Blow(
        fault, f"verifier of {verifier.generator}", scene.limit, over=noticed, achieved=noticed,
        mended=lambda: is_gone(verifier.pid) and is_gone(verifier.guardian), alone=True,
    )  # fmt: skip


def _command(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:  # it has ended meanwhile
        return []

"""Faults of what the store keeps: a flipped bit in a trajectory nobody has read yet, garbage in one that is claimed.

Each must cost exactly its own prompt: a dead letter that names it, and one prompt in its place.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random
from typing import Literal

from vcppo.common.store.access import connect_store
from vcppo.common.store.damage import damage_one, flip_bit
from vcppo.common.store.run_store import RunStore, StoreError
from vcppo.deploy.chaos.evidence import names
from vcppo.deploy.chaos.faults.scene import Blow, Scene
from vcppo.deploy.chaos.schedule import Fault

_PATIENCE_SECONDS = 2.0
_NUM_LETTERS = 1000


def corrupt_payload(scene: Scene, fault: Fault) -> Blow | None:
    """One bit of a buffered trajectory."""

    prompt_id = _spoil(scene, fault, "buffered", lambda payload: flip_bit(payload, _draw_bit(fault, payload)))
    return None if prompt_id is None else _spoilt(scene, fault, prompt_id)


def _draw_bit(fault: Fault, payload: bytes) -> int:
    return Random(fault.draw).randrange(8 * len(payload))


def garble_claimed(scene: Scene, fault: Fault) -> Blow | None:
    """Garbage in place of a claimed trajectory, and the learner dies: it meets it when it does its steps again."""
    learners = scene.up("learner")
    if not learners:
        return None
    pids = scene.pids(learners[0])
    scene.stop(pids)  # it must not commit between the two
    prompt_id = _spoil(scene, fault, "claimed", lambda payload: Random(fault.draw).randbytes(len(payload)))
    if prompt_id is None:
        scene.resume(pids)
        return None
    for pid in pids:
        scene.stopped.discard(pid)
        os.kill(pid, signal.SIGKILL)
    blow = _spoilt(scene, fault, prompt_id)
    blow.target = f"{learners[0].spec.name} and {prompt_id}"
    return blow


def _spoil(
    scene: Scene, fault: Fault, state: Literal["buffered", "claimed"], change: Callable[[bytes], bytes]
) -> str | None:
    """The prompt whose payload was changed; None when there was none in this state, or no Redis just now."""

    def choose(prompt_ids: Sequence[str]) -> str | None:
        left = [prompt_id for prompt_id in prompt_ids if prompt_id not in scene.spoilt]
        return fault.pick(left) if left else None

    try:
        with closing(_store(scene)) as store:
            found = damage_one(store, state, choose, change)
    except StoreError:
        return None
    if found is not None:
        scene.spoilt[found] = state
    return found


def _store(scene: Scene) -> RunStore:
    """Raises StoreError when it does not answer soon: nothing else gets on meanwhile."""
    return connect_store(
        scene.config, url=scene.members.redis_url, deadline_seconds=_PATIENCE_SECONDS,
        patience_seconds=_PATIENCE_SECONDS,
    )  # fmt: skip


def _spoilt(scene: Scene, fault: Fault, prompt_id: str) -> Blow:
    return Blow(fault, prompt_id, mended=lambda: _is_settled(scene, prompt_id), alone=True)


def _is_settled(scene: Scene, prompt_id: str) -> bool:
    """Whether it has its dead letter, or (one that was claimed) is committed: trained before it was spoilt."""
    try:
        with closing(_store(scene)) as store:
            is_open = any(entry.prompt_id == prompt_id for entry in store.outstanding())
            is_rejected = any(names(letter.detail, prompt_id) for letter in store.dead_letters(_NUM_LETTERS))
    except StoreError:
        return False
    return not is_open and (is_rejected or scene.spoilt[prompt_id] == "claimed")

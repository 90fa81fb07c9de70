"""How long the room on disk will last: a look each minute while a run is up, and a warning in time.

It stands with whoever supervises processes: the launcher, and each container for its own disks. The rate is that of the
last hour, so the first checkpoints of a run, before old ones go, count for a while only.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.files.room import Room, Shortage, room_of

log = structlog.get_logger(__name__)

LOOK_SECONDS = 60.0
REPORT_SECONDS = 900.0
_LOOKS_KEPT = 60
_LOOKS_NEEDED = 3
_MIB = 2**20


class Left(NamedTuple):
    """What a file system has left of a resource, and for how long at the present rate."""

    resource: str
    folder: Path
    amount: int
    hours: float


class RoomWatch:
    """Call `tick` now and then.

    Args:
        folders: those on one file system count once, under the first one's name.
        warn_hours: warn when a resource lasts for less; 0: never.
        look: what a folder's file system has left.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        warn_hours: float,
        look: Callable[[Path], Room | None] = room_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folders, self._warn_hours, self._look, self._clock = list(folders), warn_hours, look, clock
        self._looks: dict[tuple[int, str], deque[tuple[float, int]]] = {}
        self._next_look = float("-inf")
        self._told_at: dict[tuple[str, Path], float] = {}

    def tick(self) -> None:
        """Look, if a minute is over, and warn of what will not last."""
        now = self._clock()
        if self._warn_hours <= 0 or now < self._next_look:
            return
        self._next_look = now + LOOK_SECONDS
        for left in self.left(now):
            key = (left.resource, left.folder)
            if left.hours < self._warn_hours and now - self._told_at.get(key, float("-inf")) >= REPORT_SECONDS:
                self._told_at[key] = now
                free = {"free_mib": round(left.amount / _MIB)} if left.resource == "disk space" else {
                    "free_inodes": left.amount}  # fmt: skip
                log.warning("room_running_out", resource=left.resource, folder=str(left.folder), **free,
                            hours_left=round(left.hours, 2), remedy=Shortage(left.resource).remedy)  # fmt: skip

    def left(self, now: float) -> list[Left]:
        """Look once; what is getting less, of each file system."""
        found, seen = [], set()
        for folder in self._folders:
            room = self._look(folder)
            if room is None or room.device in seen:
                continue
            seen.add(room.device)
            for resource, amount in (("disk space", room.free), ("inodes", room.inodes)):
                if amount is None:
                    continue
                looks = self._looks.setdefault((room.device, resource), deque(maxlen=_LOOKS_KEPT))
                looks.append((now, amount))
                since, before = looks[0]
                if len(looks) >= _LOOKS_NEEDED and before > amount:
                    found.append(Left(resource, folder, amount, amount / (before - amount) * (now - since) / 3600))
        return found


def watch_room(config: VcppoConfig) -> RoomWatch:
    """Over what a run writes: its folder, with spools and the embedded Redis, and temporary files."""
    return RoomWatch([config.run.path, Path(tempfile.gettempdir())], config.launcher.room_warning_hours)

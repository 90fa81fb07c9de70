"""What all ranks must write, each its part, on disks that may be full.

    part 1 ─▶ all ranks compare ─▶ part 2 ─▶ all ranks compare ─▶ … ─▶ done
                 └─ a rank had no room: what there is goes, everybody waits, then all parts again

waits for: room, without a deadline, with a line every half minute. Unblocked by: room; a request to stop. No collective
waits longer than a second: rank 0 says every second whether to try again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from vcppo.common.files.room import Shortage, exhausted, shortage_of
from vcppo.common.process.patience import RETRY_SECONDS, RoomWait
from vcppo.learner.engine.distributed import broadcast_object, rank, sum_over_ranks

MAX_PAUSE_SECONDS = 60.0


def write_together(
    parts: Sequence[Callable[[], None]],
    clear: Callable[[], None],
    what: str,
    folder: Path,
    stopping: Callable[[], bool] = lambda: False,
) -> None:
    """Do all `parts` on every rank, in step; from the first again after a shortage on any rank. Collective.

    Args:
        parts: as many on each rank.
        clear: removes what a failed try has left; called on rank 0.
        what: is written, for log lines.
        folder: where.
        stopping: rank 0's word counts.

    Raises:
        ResourceExhausted: asked to stop while there was no room.
    """
    wait = RoomWait(what, folder)
    while True:
        started = time.monotonic()
        is_done, shortage = _try(parts, wait)
        if is_done:
            wait.over()
            return
        if rank() == 0:
            _clear(clear)
        # A try may write for minutes before it fails: the pause is as long again.
        pause = min(max(RETRY_SECONDS, 2 * (time.monotonic() - started)), MAX_PAUSE_SECONDS)
        if not _pause(pause, stopping):
            raise exhausted(shortage or Shortage("disk space", folder), f"stopped while {what} waited for room")


def _clear(clear: Callable[[], None]) -> None:
    """Room for others meanwhile. Looking into a folder may want what has run out: then the next try begins with it."""
    try:
        clear()
    except OSError as error:
        if shortage_of(error) is None:
            raise


def _try(parts: Sequence[Callable[[], None]], wait: RoomWait) -> tuple[bool, Shortage | None]:
    for part in parts:
        shortage = None
        try:
            part()
        except Exception as error:  # noqa: BLE001  (`failed` raises what is no shortage)
            shortage = wait.failed(error)
        if sum_over_ranks(np.array([shortage is not None], np.float64))[0]:
            return False, shortage
    return True, None


def _pause(seconds: float, stopping: Callable[[], bool]) -> bool:
    """Whether to try again after it; False: asked to stop."""
    until, pause = time.monotonic() + seconds, threading.Event()
    while True:
        decision = None
        if rank() == 0:
            decision = "stop" if stopping() else "again" if time.monotonic() >= until else "wait"
        match broadcast_object(decision):
            case "stop":
                return False
            case "again":
                return True
        pause.wait(RETRY_SECONDS)  # nobody tells when there is room

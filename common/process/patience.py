"""Waiting for room: for writers whose work must not be lost.

A write that fails because a resource has run out is tried again until it works, with a line every half minute that says
what is missing, where, and what to do. There is no deadline: only a person can make room, and the run goes on by itself
once there is some.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import structlog

from vcppo.common.files.room import Shortage, exhausted, shortage_of
from vcppo.common.process import watchdog

log = structlog.get_logger(__name__)

RETRY_SECONDS = 1.0
REPORT_SECONDS = 30.0

T = TypeVar("T")


class RoomWait:
    """One wait for room; `what` is written, in or below `folder`."""

    def __init__(self, what: str, folder: Path) -> None:
        self._what, self._folder = what, folder
        self._since: float | None = None
        self._report_at = 0.0

    def failed(self, error: BaseException) -> Shortage:
        """A try has failed: say so now and then. Raises `error` when it is no shortage."""
        shortage = shortage_of(error, self._folder)
        if shortage is None:
            raise error
        self.say(shortage)
        return shortage

    def say(self, shortage: Shortage) -> None:
        """A sign of life for the watchdog, and a line every `REPORT_SECONDS`."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        watchdog.stage("room", waiting_for=[shortage.resource])
        if now >= self._report_at:
            self._report_at = now + REPORT_SECONDS
            log.warning("waiting_for_room", what=self._what, seconds=round(now - self._since), **shortage.as_fields())

    def over(self) -> None:
        """It works again; says so, if it was waited for."""
        if self._since is not None:
            log.info("room_again", what=self._what, seconds=round(time.monotonic() - self._since, 1))
            self._since = None


def patiently(do: Callable[[], T], what: str, folder: Path, stopping: Callable[[], bool] = lambda: False) -> T:
    """`do()`, again and again while a resource has run out.

    Args:
        what: its name in log lines.
        folder: where it writes.
        stopping: looked at between tries.

    Raises:
        ResourceExhausted: `stopping` while there is no room.
    """
    wait, pause = RoomWait(what, folder), threading.Event()
    while True:
        try:
            done = do()
        except Exception as error:
            shortage = wait.failed(error)
            if stopping():
                raise exhausted(shortage, f"stopped while {what} waited for room") from error
            pause.wait(RETRY_SECONDS)  # nobody tells when there is room
        else:
            wait.over()
            return done

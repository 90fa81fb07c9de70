"""Grandchildren whose parent died: as a subreaper the launcher becomes their parent, ends them and reaps them.

torchrun puts its ranks in sessions of their own and vLLM starts an engine process: killing the process we started,
or its group, would leave them behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection

import structlog

from vcppo.common.process.guardian import PR_SET_CHILD_SUBREAPER, parents, prctl
from vcppo.deploy.processes.reserve import Reserve

log = structlog.get_logger(__name__)

GRACE_SECONDS = 5.0


class Orphans:
    """SIGTERM at adoption, SIGKILL after a grace. Children this process had before are none of its business.

    They are found in /proc, which takes an open file: one of the `reserve`.
    """

    def __init__(self, reserve: Reserve) -> None:
        self._reserve = reserve
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        with reserve.lent():
            self._foreign = set(children_of(os.getpid()))
        self._kill_at: dict[int, float] = {}

    def __bool__(self) -> bool:
        return bool(self._kill_at)

    @property
    def next_deadline(self) -> float:
        """When `reap` has something to kill; infinity when not."""
        return min(self._kill_at.values(), default=float("inf"))

    def adopt(self, own: Collection[int]) -> None:
        """Take charge of children that are not in `own` (pids of living children we started)."""
        with self._reserve.lent():
            found = children_of(os.getpid())
        for pid in found:
            if pid not in self._foreign and pid not in own and pid not in self._kill_at:
                self._kill_at[pid] = time.monotonic() + GRACE_SECONDS
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)

    def reap(self, own: Collection[int]) -> None:
        """Bury the dead, kill the late; called whenever a child ended or `next_deadline` passed."""
        for pid, deadline in list(self._kill_at.items()):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == 0:
                    if time.monotonic() >= deadline:
                        log.warning("orphan_killed", pid=pid)
                        os.kill(pid, signal.SIGKILL)
                        self._kill_at[pid] = float("inf")  # SIGCHLD tells of its end
                    continue
            del self._kill_at[pid]
            self.adopt(own)  # its own children come to us in turn

    def close(self) -> None:
        """Orphans go to init again."""
        prctl(PR_SET_CHILD_SUBREAPER, 0)


def children_of(pid: int) -> list[int]:
    """Pids whose parent is `pid`; empty where there is no /proc."""
    return [child for child, parent in parents().items() if parent == pid]

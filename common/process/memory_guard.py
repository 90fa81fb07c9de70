"""What peers may make a process hold: measured as its resident memory, the only place where everything counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

_PAUSE_SECONDS = 1.0  # after a cut: the memory is freed in the background
_MIB = 1 << 20


class ResidentMemory:
    """Of this process."""

    def __init__(self) -> None:
        # Kept open: a crowd of peers may use up all files.
        self._statm = Path("/proc/self/statm").open("rb", buffering=0)  # noqa: SIM115  (as long as its owner)

    def mib(self) -> float:
        """Resident set now, MiB."""
        self._statm.seek(0)
        return int(self._statm.read(100).split()[1]) * os.sysconf("SC_PAGE_SIZE") / _MIB


class MemoryGuard:
    """For a process that has much of its own: tells when it has grown by more than peers may make it grow.

    A message that never ends counts in no limit of ZeroMQ's; cutting the connection is the only way to be rid of it.
    Growth that a cut does not give back was not the peers', and is allowed from then on.
    """

    def __init__(self, limit_mib: float) -> None:
        self._limit = limit_mib
        self._memory = ResidentMemory()
        self._base = self._memory.mib()
        self._judge_at: float | None = None
        self._at_cut = 0.0

    def is_exceeded(self, busy: bool) -> bool:
        """Whether to cut connections now. `busy`: a cut would break off work, so only at twice the limit."""
        now = self._memory.mib()
        if self._judge_at is not None:
            if time.monotonic() < self._judge_at:
                return False
            self._judge_at = None
            if self._at_cut - now < self._limit / 2:
                self._base = now
        if now - self._base <= self._limit * (2 if busy else 1):
            return False
        self._judge_at, self._at_cut = time.monotonic() + _PAUSE_SECONDS, now
        log.error(
            "connections_cut",
            grown_mib=round(now - self._base),
            limit=f"transport.receive_memory_mib = {self._limit:g}",
            effect="callers connect again",
        )
        return True

"""Rate limit for log lines that peers can trigger: what they repeat must not fill the disk."""

from __future__ import annotations

import time
from collections.abc import Callable


class RateLimit:
    """At most `lines` log lines of one kind in `seconds`."""

    def __init__(self, lines: int, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._lines = lines
        self._seconds = seconds
        self._clock = clock
        self._renewed_at = clock()
        self._left = lines
        self._num_held_back = 0

    def take(self) -> int | None:
        """None: hold this line back. Otherwise log it, with how many were held back since the one before."""
        if self._clock() >= self._renewed_at + self._seconds:
            self._renewed_at, self._left = self._clock(), self._lines
        if not self._left:
            self._num_held_back += 1
            return None
        self._left -= 1
        held_back, self._num_held_back = self._num_held_back, 0
        return held_back

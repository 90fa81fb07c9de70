"""What a supervisor must have when nothing is left: some open files that it took in time.

Looking for orphans and starting a process need new files for a moment; a supervisor that has none of its own can do
neither when it matters most.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

_SPARE = 4


class Reserve:
    """Raises OSError when there are too few already at its start."""

    def __init__(self) -> None:
        self.null = os.open(os.devnull, os.O_RDWR)
        self._spare: list[int] = []
        self._take()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Inside, `_SPARE` more files can be opened than otherwise; outside, the reserve fills up again."""
        while self._spare:
            os.close(self._spare.pop())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # others have them now; the next time there may be more
                self._take()

    def close(self) -> None:
        """Give everything back."""
        for each in (*self._spare, self.null):
            os.close(each)
        self._spare.clear()

    def _take(self) -> None:
        while len(self._spare) < _SPARE:
            self._spare.append(os.dup(self.null))

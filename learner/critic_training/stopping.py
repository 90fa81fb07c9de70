"""When the critic has had enough of a batch. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["go_on", "no_rise", "max_passes", "max_seconds"]


@dataclass(frozen=True)
class Stopping:
    """Says after each pass whether there is another.

    Attributes:
        passes: so many; None: as long as explained variance on held-out responses rises.
        max_passes: with `passes` None, so many at most. The pass beside the actor's updates counts in both.
        max_seconds: of all passes but that one; None: no such budget. A pass that would go beyond it is not begun.
        min_rise: of held-out explained variance above the best so far, for a pass to count as one that helped.
        patience: so many passes in a row that did not help end it.
    """

    passes: int | None
    max_passes: int
    max_seconds: float | None
    min_rise: float
    patience: int

    def after(self, num_passes: int, measured: Sequence[float | None], seconds: Sequence[float]) -> Verdict:
        """What to do.

        Args:
            num_passes: done by now.
            measured: held-out explained variance after each of them. None: the returns do not vary, so nothing can
                rise.
            seconds: of each pass but the one beside the actor's updates.
        """
        if self.passes is None and not self._may_rise(measured):
            return "no_rise"
        if num_passes >= (self.max_passes if self.passes is None else self.passes):
            return "max_passes"
        if self.max_seconds is not None and sum(seconds) + max(seconds, default=0.0) > self.max_seconds:
            return "max_seconds"
        return "go_on"

    def _may_rise(self, measured: Sequence[float | None]) -> bool:
        """Small rises add up: each is held against the last value that counted as one."""
        best, num_in_vain = -math.inf, 0
        for value in measured:
            if value is None:
                return False
            if value >= best + self.min_rise:
                best, num_in_vain = value, 0
            else:
                num_in_vain += 1
        return num_in_vain < self.patience

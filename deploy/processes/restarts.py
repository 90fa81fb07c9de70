"""How often may a process be started again? Counted by what ended it. Pure.

A process that ends twice for one reason will likely end a third time, however long it takes to get there; two reasons
are two strokes of bad luck. A count begins anew when the run has got on in the meantime: with the training step, not
with time alone, for a fault may take longer to show than any window.

An end for want of a resource (a full disk, no more processes) counts for nothing: the process is started again, after
pauses that grow, until there is room.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from vcppo.common.errors import EXIT_EXHAUSTED
from vcppo.common.files.room import resource_named

PROGRESS = frozenset({"step", "sft_step", "value_pretraining_recorded", "evaluation_progress"})
"""Events of log lines that say: the work gets on."""
PROGRESSING_ROLES = frozenset({"learner", "sft", "eval"})
"""Whose processes write them. Where none runs (a generator's container), time alone must do."""
MOST_CAUSES = 3
"""Different causes without progress in between: then it is one that changes its looks."""


@dataclass
class Restarts:
    """Of one process.

    Attributes:
        in_a_row: restarts since the run last got on, whatever the causes.
        total: ever.
    """

    in_a_row: int = 0
    total: int = 0
    _by_cause: Counter[str] = field(default_factory=Counter)

    def may_restart(self, cause: str, most: int) -> bool:
        """Whether one more is within bounds: `most` for one cause, `MOST_CAUSES` times that for all."""
        return self._by_cause[cause] < most and self.in_a_row < MOST_CAUSES * most

    def count(self, cause: str) -> int:
        """One more restart; returns which it is for this cause, from 1."""
        self._by_cause[cause] += 1
        self.in_a_row += 1
        self.total += 1
        return self._by_cause[cause]

    def begin_anew(self) -> None:
        """The run has got on: what was, is over."""
        self._by_cause.clear()
        self.in_a_row = 0


def cause_of(exit_code: int | None, last_error: str) -> str:
    """How it ended and the text of its last ``fatal`` line, without what differs from time to time: numbers, ids."""
    plain = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "#", last_error)
    return f"{exit_code} {plain[:200]}".strip()


MAX_BACKOFF_SECONDS = 30.0
MAX_ROOM_SECONDS = 10.0  # a try costs little, and a run that has room again should go on


@dataclass
class RoomPause:
    """Of one process: what it waits for, and how often it has tried.

    Attributes:
        resource: what has run out; empty: nothing, as far as is known.
        is_own: it is this process that lacks it; else one that this process needs.
        tries: in a row.
    """

    resource: str = ""
    is_own: bool = True
    tries: int = 0

    def again(self, resource: str, first_seconds: float, *, is_own: bool) -> float:
        """It could not start, or ended, for want of `resource`. Returns the seconds until the next try."""
        delay = min(first_seconds * 2.0 ** min(self.tries, 16), MAX_ROOM_SECONDS)
        self.resource, self.is_own, self.tries = resource, is_own, self.tries + 1
        return delay

    def over(self) -> None:
        """It has been up for long enough."""
        self.resource, self.tries = "", 0


def resource_lacked(exit_code: int | None, resource: str, last_lines: Iterable[str]) -> str | None:
    """Which resource a process ended for want of; None: it was something else, as far as is known.

    Args:
        resource: what its ``fatal`` line named; empty without one.
        last_lines: of it, for programs that are not ours.
    """
    if resource or exit_code == EXIT_EXHAUSTED:
        return resource or "a resource"
    return next((found for line in last_lines if (found := resource_named(line)) is not None), None)

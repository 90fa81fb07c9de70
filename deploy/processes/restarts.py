"""How often may a process be started again? Counted by what ended it. Pure.

A process that ends twice for one reason will likely end a third time, however long it takes to get there; two reasons
are two strokes of bad luck. A count begins anew when the run has got on in the meantime: with the training step, not
with time alone, for a fault may take longer to show than any window.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

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

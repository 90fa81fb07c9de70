"""What a benchmark gives back: figures, each with what it stands against and the goal it is held to."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple


class Goal(NamedTuple):
    """A bound a figure should keep; see `at_most` and `at_least`."""

    sense: Literal["≤", "≥"]
    bound: float

    def met(self, value: float) -> bool:
        return value <= self.bound if self.sense == "≤" else value >= self.bound

    def __str__(self) -> str:
        return f"{self.sense} {self.bound:g}"


def at_most(bound: float) -> Goal:
    return Goal("≤", bound)


NO_KNEE = 1.25
"""What grows as a straight line costs at most this much more a piece where there is more of it."""


def at_least(bound: float) -> Goal:
    return Goal("≥", bound)


@dataclass(frozen=True)
class Figure:
    """One row of the table in docs/performance.md.

    Attributes:
        what: what of ours was measured, with its size ("GAE, packed, both λ, 64 × 16,384 tokens").
        against: what the value is relative to ("copying inputs and outputs once"); "" for a figure that stands alone.
        value: median over rounds, in `unit`.
        unit: "×" for a ratio; else a unit that the issue or a physical limit states ("µs", "MiB", "%").
        low, high: smallest and largest over rounds.
        goal: what it should reach; None: reported only.
        absolute: the median behind the ratio, for orientation ("5.2 ms"); no claim.
        peak_mib: memory above what the process held before the call.
        note: one line, when the figure needs a word to be read right.
    """

    what: str
    against: str
    value: float
    unit: str = "×"
    low: float | None = None
    high: float | None = None
    goal: Goal | None = None
    absolute: str = ""
    peak_mib: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the goal is kept; None without one. A value that is not a number keeps none."""
        if self.goal is None:
            return None
        return not math.isnan(self.value) and self.goal.met(self.value)

    @classmethod
    def of(cls, what: str, against: str, samples: Sequence[float], **fields: Any) -> Figure:
        """The median of `samples`, with their range."""
        return cls(what, against, statistics.median(samples), low=min(samples), high=max(samples), **fields)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Figure:
        goal = values.get("goal")
        return cls(**{**values, "goal": Goal(*goal) if goal else None})


def seconds_text(seconds: float) -> str:
    """3 digits with the unit that reads best."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"

"""Held-out accuracy measured while a run trains, as its metrics name it. Pure.

``eval/accuracy`` with its 95 % interval, ``eval/accuracy_low`` and ``eval/accuracy_high``, in rows of the stage
``evaluation`` whose step is the policy version; of a further benchmark ``eval/NAME/accuracy`` and so on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_PREFIX, _NAME = "eval/", "/accuracy"


class Measured(NamedTuple):
    """The metrics of one benchmark: share of right answers, 0 to 1, and the ends of its interval."""

    accuracy: str
    low: str
    high: str

    @classmethod
    def of(cls, prefix: str) -> Measured:
        """Those that begin with ``eval`` or ``eval/NAME``."""
        return cls(f"{prefix}/accuracy", f"{prefix}/accuracy_low", f"{prefix}/accuracy_high")


class HeldOut(NamedTuple):
    """One measurement; `low` and `high` are None where no interval was written."""

    step: int
    accuracy: float
    low: float | None
    high: float | None


HELD_OUT = Measured.of("eval")


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, Measured]:
    """What to draw, by label: ``held out``, then each benchmark by its name; only what the rows have."""
    found: dict[str, Measured] = {}
    written: set[str] = set().union(*rows)  # at once: a long run has a million names, and a live view asks every second
    if HELD_OUT.accuracy in written:
        found["held out"] = HELD_OUT
    names = {name for name in written if name.startswith(_PREFIX) and name.endswith(_NAME)}
    for prefix in sorted(name.removesuffix(_NAME) for name in names - {HELD_OUT.accuracy}):
        found[prefix.removeprefix(_PREFIX)] = Measured.of(prefix)
    return found


def newest(rows: Sequence[Mapping[str, Any]], measured: Measured = HELD_OUT) -> HeldOut | None:
    """The last measurement; None where nothing was measured."""
    return next((found for row in reversed(rows) for found in all_of([row], measured)), None)


def all_of(rows: Sequence[Mapping[str, Any]], measured: Measured = HELD_OUT) -> list[HeldOut]:
    """Every measurement, in the order of the rows."""
    return [
        HeldOut(row["step"], accuracy, _share(row.get(measured.low)), _share(row.get(measured.high)))
        for row in rows
        if (accuracy := _share(row.get(measured.accuracy))) is not None
    ]


def held_out_text(found: HeldOut) -> str:
    """``71.9 % (95 %: 64.0 to 78.6)``, in percent."""
    text = f"{100 * found.accuracy:.1f} %"
    if found.low is None or found.high is None:
        return text
    return f"{text} (95 %: {100 * found.low:.1f} to {100 * found.high:.1f})"


def _share(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None

"""What moved between two versions of docs/performance.json: pure, and as lines for a terminal.

A figure is found again by its benchmark, `what` and `against`. Its range is that of its rounds, so two ranges that
overlap may be one and the same speed, measured twice: the move is within the noise. A move is outside it when the
ranges have no value in common. Figures of two machines are shown beside each other and never judged.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.rig.figures import Figure

Verdict = Literal["same", "within the noise", "outside the noise", "noise unknown", "other machine", "new", "gone"]
_MACHINE = ("processor", "memory")

Kept = Mapping[str, Any]
"""docs/performance.json as it is read: by benchmark `date`, `machine` and `figures`."""


@dataclass(frozen=True)
class Move:
    """One figure, before and after. At least one of the two is there.

    Attributes:
        benchmark: its name in `python -m benchmarks`.
        before, after: None where that version lacks it.
        is_same_machine: whether both were taken on the same processor with as much memory.
    """

    benchmark: str
    before: Figure | None
    after: Figure | None
    is_same_machine: bool = True

    @property
    def figure(self) -> Figure:
        """The newer of the two, for its name, unit and goal."""
        found = self.after or self.before
        assert found is not None, "a move has at least one side"
        return found

    @property
    def verdict(self) -> Verdict:
        if self.before is None:
            return "new"
        if self.after is None:
            return "gone"
        if _equal(self.before.value, self.after.value) and self.is_same_machine:
            return "same"
        if not self.is_same_machine:
            return "other machine"
        ranges = _range(self.before), _range(self.after)
        if ranges[0] is None or ranges[1] is None:
            return "noise unknown"
        return "within the noise" if overlap(ranges[0], ranges[1]) else "outside the noise"

    @property
    def change(self) -> float | None:
        """after / before − 1; None where it is no number."""
        if self.before is None or self.after is None or not self.before.value:
            return None
        ratio = self.after.value / self.before.value - 1
        return ratio if math.isfinite(ratio) else None

    @property
    def is_better(self) -> bool | None:
        """By the sense of its goal; None without one, and where nothing moved outside the noise."""
        goal = self.figure.goal
        if goal is None or self.verdict != "outside the noise" or self.before is None or self.after is None:
            return None
        return (self.after.value < self.before.value) == (goal.sense == "≤")


def overlap(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges (smallest, largest) have a value in common."""
    return max(one[0], other[0]) <= min(one[1], other[1])


def compare(before: Kept, after: Kept) -> list[Move]:
    """All figures of both versions, in the order of `after`; those that are gone follow their benchmark's."""
    moves: list[Move] = []
    for name in dict.fromkeys([*after, *before]):
        old, new = _figures(before.get(name)), _figures(after.get(name))
        same = not (old and new) or _machine(before[name]) == _machine(after[name])
        moves += [Move(name, old.get(key), new.get(key), same) for key in dict.fromkeys([*new, *old])]
    return moves


def lines(before: Kept, after: Kept, *, outside_only: bool = False) -> Iterator[str]:
    """What moved, for a terminal, benchmark by benchmark; figures that are the same are counted at the end.

    Args:
        outside_only: leave out moves within the noise.
    """
    moves = compare(before, after)
    hidden = {"same", "within the noise"} if outside_only else {"same"}
    heading = ""
    for move in moves:
        if move.verdict in hidden:
            continue
        if move.benchmark != heading:
            heading = move.benchmark
            yield f"{heading}: {_where(before.get(heading))} → {_where(after.get(heading))}"
            if not move.is_same_machine:
                yield "  two machines: none of these is judged; ratios (×) may be compared, absolute figures can't"
        figure = move.figure
        yield f"  {figure.what}{f', against {figure.against}' if figure.against else ''}"
        yield f"      {_side(move.before)} → {_side(move.after)}{_ending(move)}"
    counts = Counter(move.verdict for move in moves)
    yield "; ".join(f"{count} {verdict}" for verdict, count in counts.most_common()) or "no figures on either side"


def _figures(entry: Any) -> dict[tuple[str, str, int], Figure]:
    """By what, against and, should two have both alike, their number."""
    found: dict[tuple[str, str, int], Figure] = {}
    seen: Counter[tuple[str, str]] = Counter()
    for values in entry["figures"] if entry is not None else ():
        figure = Figure.from_dict(values)
        key = figure.what, figure.against
        found[(*key, seen[key])] = figure
        seen[key] += 1
    return found


def _range(figure: Figure) -> tuple[float, float] | None:
    """None where it has none or one that is no number."""
    if figure.low is None or figure.high is None or math.isnan(figure.low) or math.isnan(figure.high):
        return None
    return figure.low, figure.high


def _machine(entry: Any) -> tuple[str, ...]:
    return tuple(entry["machine"].get(field, "") for field in _MACHINE)


def _where(entry: Any) -> str:
    if entry is None:
        return "not measured"
    return f"{entry['date']}, commit {entry['machine'].get('commit', 'unknown')}, {', '.join(_machine(entry))}"


def _side(figure: Figure | None) -> str:
    if figure is None:
        return "–"
    found = _range(figure)
    spread = "" if found is None else f" ({found[0]:.3g} – {found[1]:.3g})"
    return f"{figure.value:.3g} {figure.unit}{spread}{f', {figure.absolute}' if figure.absolute else ''}"


def _ending(move: Move) -> str:
    change = "" if move.change is None else f"   {100 * move.change:+.0f} %"
    judged = {None: "", True: ", better", False: ", worse"}[move.is_better]
    return f"{change}   {move.verdict}{judged}"


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))

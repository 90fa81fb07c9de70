"""The storm: strikes by the schedule, one fault after the other, and times how the run gets over each.

    wait for the first step ─▶ [ gap ─▶ strike ─▶ undo when it has lasted ─▶ mended: steps again ] … ─▶ settle ─▶ over

A run has got over a fault when the learner has done so many new steps since its end that the last of them can only be
made of what was generated after it: eta + 1 batches may have been lying ready, so eta + 2. `tick` is called about
once a second by the launcher's supervisor; nothing here blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Protocol

from vcppo.deploy.chaos.faults.scene import Blow
from vcppo.deploy.chaos.schedule import Fault, Kind
from vcppo.deploy.chaos.watch import Watch


class Injects(Protocol):
    """What the storm needs of `vcppo.deploy.chaos.injector.Injector`."""

    def strike(self, fault: Fault) -> Blow | None:
        """Do it; None: there was nothing to strike."""

    def undo_all(self) -> None:
        """End whatever still lasts: frozen processes go on, links are restored."""


@dataclass
class Entry:
    """A fault in the log book. Times in seconds; None: not yet.

    Attributes:
        at: when it struck, from the beginning of the storm.
        lasted: from the strike until it was undone.
        step: the learner's newest step when it was over.
        recovered_after: from its end to the step that shows that the run is over it.
        problem: what was not as it must be.
    """

    number: int
    kind: Kind
    target: str
    at: float
    lasted: float | None = None
    step: int | None = None
    recovered_after: float | None = None
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        """For chaos.json."""
        return asdict(self)


@dataclass
class _Open:
    """A fault the run has not got over yet."""

    blow: Blow
    entry: Entry
    struck_at: float
    ended_at: float | None = None


class Storm:
    """Faults for so many minutes, then calm until everything is up again.

    Args:
        limit_seconds: within this the run must have got over a fault.
        steps_needed: new steps that show it (see above).
        start_seconds: within this the first step must be done.
        is_whole: whether every process that should be up is.
        tell: one line for the terminal.
        clock: seconds; a test's own.
    """

    def __init__(
        self,
        faults: Iterator[Fault],
        injector: Injects,
        watch: Watch,
        *,
        minutes: float,
        limit_seconds: float,
        steps_needed: int,
        start_seconds: float,
        is_whole: Callable[[], bool],
        tell: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._faults, self._injector, self._watch = faults, injector, watch
        self._duration, self._limit, self._steps_needed = minutes * 60, limit_seconds, steps_needed
        self._start_seconds = start_seconds
        self._is_whole, self._tell, self._clock = is_whole, tell, clock
        self._next: Fault | None = None
        self._open: list[_Open] = []
        self._created_at = clock()
        self._began_at: float | None = None
        self._free_since = 0.0  # since when nothing keeps the next fault back
        self._calm_since: float | None = None
        self._calm_step = 0
        self.entries: list[Entry] = []
        self.problems: list[str] = []
        self.over = False

    @property
    def seconds(self) -> float:
        """Since the first step."""
        return 0.0 if self._began_at is None else self._clock() - self._began_at

    def tick(self) -> None:
        """Look, undo what has lasted, strike what is due."""
        if self.over:
            return
        self._watch.refresh()
        if self._began_at is None:
            self._wait_for_first_step()
            return
        for one in list(self._open):
            self._follow(one)
        if self.problems:
            self._injector.undo_all()
            self.over = True
        elif self._calm_since is not None:
            self._settle()
        elif self.seconds >= self._duration:
            if not self._open:
                self._calm_since, self._calm_step = self._clock(), self._watch.step
                self._tell("no more faults; waiting until everything is up again")
        else:
            self._maybe_strike()

    def _wait_for_first_step(self) -> None:
        if self._watch.step > 0:
            self._began_at = self._free_since = self._clock()
            self._tell(f"the run is up (step {self._watch.step}); faults begin")
        elif self._clock() - self._created_at > self._start_seconds:
            self._problem(f"no RL step {self._start_seconds:.0f} s after the start")
            self.over = True

    def abandon(self) -> None:
        """Strike no more, and let everything run and flow again."""
        self.over = True
        self._injector.undo_all()

    # ---- one fault

    def _maybe_strike(self) -> None:
        if self._next is None:
            self._next = next(self._faults)
        if self._open and (not self._next.overlaps or any(one.blow.alone for one in self._open)):
            return
        waited = self._clock() - self._free_since
        if waited < self._next.gap_seconds:
            return
        blow = self._injector.strike(self._next)
        if blow is None:  # what it is for is not up at the moment
            if not self._open and waited > self._limit:
                self._problem(f"{self._next.kind}: nothing of the kind was up for {waited:.0f} s")
            return
        self._next = None
        entry = Entry(blow.fault.number, blow.fault.kind, blow.target, round(self.seconds, 1))
        self.entries.append(entry)
        self._open.append(_Open(blow, entry, self._clock()))
        self._free_since = self._clock()
        self._tell(_struck(entry, blow))

    def _follow(self, one: _Open) -> None:
        now, blow, entry = self._clock(), one.blow, one.entry
        if one.ended_at is None:
            if not blow.over() and now - one.struck_at < blow.seconds:
                return
            blow.undo()
            one.ended_at = now
            entry.lasted, entry.step = round(now - one.struck_at, 1), self._watch.step
            if not blow.achieved():
                self._problem(f"#{entry.number} {entry.kind}: had no effect in {entry.lasted:.0f} s", entry)
            return
        assert entry.step is not None
        waited = now - one.ended_at
        if self._watch.step >= entry.step + self._steps_needed and blow.mended():
            entry.recovered_after = round(waited, 1)
            self._open.remove(one)
            self._free_since = now
            self._tell(f"      over it after {waited:.0f} s, step {self._watch.step}")
        elif waited > self._limit:
            self._open.remove(one)
            self._problem(
                f"#{entry.number} {entry.kind} ({entry.target}): step {self._watch.step} after {waited:.0f} s, "
                f"{entry.step + self._steps_needed} wanted",
                entry,
            )

    # ---- the end

    def _settle(self) -> None:
        assert self._calm_since is not None
        waited = self._clock() - self._calm_since
        if self._is_whole() and self._watch.step >= self._calm_step + self._steps_needed:
            self._tell(f"everything is up again after {waited:.0f} s, step {self._watch.step}")
            self.over = True
        elif waited > self._limit:
            self._problem(f"{waited:.0f} s after the last fault not every process was up again and stepping")
            self.over = True

    def _problem(self, text: str, entry: Entry | None = None) -> None:
        self.problems.append(text)
        if entry is not None:
            entry.problem = text
        self._tell(f"PROBLEM: {text}")


def _struck(entry: Entry, blow: Blow) -> str:
    minutes, seconds = divmod(int(entry.at), 60)
    lasting = (
        f" for {blow.seconds:.0f} s"
        if blow.seconds and not blow.alone and entry.kind.action in ("freeze", "cut", "block")
        else ""
    )
    target = f" ({entry.target})" if entry.target != entry.kind.target else ""
    return f"{minutes:>3}:{seconds:02d} #{entry.number:<3} {entry.kind}{target}{lasting}"

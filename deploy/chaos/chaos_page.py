"""How a chaos run is written down: ``chaos.json`` for programs, ``chaos.txt`` and the terminal for people."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from vcppo.common.store.ledger import Ledger
from vcppo.deploy.chaos.evidence import Check
from vcppo.deploy.chaos.schedule import Kind
from vcppo.deploy.chaos.storm import Entry


@dataclass(frozen=True)
class Outcome:
    """A chaos run and its verdict."""

    seed: int
    minutes: float
    limit_seconds: float
    seconds: float
    kinds: tuple[Kind, ...]
    entries: tuple[Entry, ...]
    checks: tuple[Check, ...]
    ledger: Ledger | None
    steps: int
    restarts: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether every check of the storm passed."""
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, object]:
        """What chaos.json holds; times in seconds."""
        return {
            "passed": self.passed,
            "seed": self.seed,
            "minutes": self.minutes,
            "limit_seconds": self.limit_seconds,
            "seconds": round(self.seconds, 1),
            "steps": self.steps,
            "num_faults": len(self.entries),
            "counts": {kind.value: len(self.of(kind)) for kind in self.kinds},
            "faults": [entry.as_dict() for entry in self.entries],
            "checks": [check._asdict() for check in self.checks],
            "ledger": self.ledger.as_dict() if self.ledger else None,
            "restarts": self.restarts,
        }

    def of(self, kind: Kind) -> list[Entry]:
        """The faults of this kind, in the order they struck."""
        return [entry for entry in self.entries if entry.kind == kind]


def write_outcome(folder: Path, outcome: Outcome) -> None:
    """``<run>/chaos.json`` and ``<run>/chaos.txt``."""
    (folder / "chaos.json").write_text(json.dumps(outcome.as_dict(), indent=1) + "\n", encoding="utf-8")
    with (folder / "chaos.txt").open("w", encoding="utf-8") as file:
        Console(file=file, width=140).print(_page(outcome))


def print_outcome(console: Console, folder: Path, outcome: Outcome) -> None:
    """The page on the terminal, and where it is on disk."""
    console.print(_page(outcome))
    console.print(
        f"\nwritten to {folder}/chaos.json and chaos.txt; logs: vcppo logs {folder}", highlight=False, markup=False
    )


def _page(outcome: Outcome) -> RenderableType:
    restarts = sum(outcome.restarts.values())
    summary = (
        f"\n{len(outcome.entries)} faults of {sum(bool(outcome.of(kind)) for kind in outcome.kinds)} kinds in "
        f"{outcome.seconds / 60:.1f} minutes; {outcome.steps} learner steps; {restarts} restarts ("
        + ", ".join(f"{name} {count}" for name, count in outcome.restarts.items() if count)
        + ")\n"
    )
    verdict = Text("\nNothing was lost.", "green") if outcome.passed else Text("\nNOT as it must be.", "bold red")
    return Group(Text(""), _fault_table(outcome), Text(summary), _check_table(outcome.checks), verdict)


def _fault_table(outcome: Outcome) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("fault")
    for heading in ("count", "recovered", "median s", "slowest s"):
        table.add_column(heading, justify="right")
    for kind in outcome.kinds:
        entries = outcome.of(kind)
        times = [entry.recovered_after for entry in entries if entry.recovered_after is not None]
        table.add_row(
            kind.value,
            str(len(entries)),
            str(len(times)),
            f"{statistics.median(times):.0f}" if times else "–",
            f"{max(times):.0f}" if times else "–",
        )
    return table


def _check_table(checks: Iterable[Check]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(style="bright_black")
    for check in checks:
        mark = Text("holds", "green") if check.passed else Text("FAILS", "bold red")
        table.add_row(mark, check.what, Text(check.detail))
    return table

"""Figures as text, and kept: docs/performance.json, and the table made from it in docs/performance.md."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.rig.figures import Figure
from benchmarks.rig.machine import describe

DOCS = REPOSITORY / "docs"
BEGIN, END = "<!-- made by `make bench`: begin -->", "<!-- made by `make bench`: end -->"
_HEAD = (
    "| what | against | figure | range | goal | kept? | absolute | peak memory |\n|---|---|--:|--:|--:|:-:|--:|--:|\n"
)


def keep(name: str, figures: Sequence[Figure], order: Sequence[str]) -> None:
    """Replace this benchmark's figures and make the table anew; the others' stay as they are."""
    path = DOCS / "performance.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(),
        "figures": [figure.as_dict() for figure in figures],
    }
    ordered = {key: kept[key] for key in order if key in kept}
    path.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n")
    _write_table(ordered)


def _write_table(kept: dict[str, Any]) -> None:
    target = DOCS / "performance.md"
    before, begin, rest = target.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{target} lacks the lines {BEGIN} and {END}, between which the table goes")
    target.write_text(f"{before}{begin}\n{table(kept)}{end}{after}")


def table(kept: dict[str, Any]) -> str:
    """Markdown: the machines, then one table per benchmark."""
    parts = []
    for name, entry in kept.items():
        figures = [Figure.from_dict(values) for values in entry["figures"]]
        rows = "".join(f"| {' | '.join(_cells(figure))} |\n" for figure in figures)
        machine = entry["machine"]
        where = f"{entry['date']}, {machine['processor']}, {machine['memory']}, commit {machine['commit']}"
        notes = "".join(f"- {figure.what}: {figure.note}\n" for figure in figures if figure.note)
        heading = f"### `python -m benchmarks {name}`"
        parts.append("\n" + "\n\n".join(filter(None, [heading, where, _HEAD + rows + ("\n" + notes if notes else "")])))
    software = next(iter(kept.values()))["machine"]["software"] if kept else ""
    return f"\n{software}\n" + "".join(parts) + "\n"


def plain(figures: Sequence[Figure]) -> str:
    """The same for a terminal."""
    lines = []
    for figure in figures:
        value, goal, kept = _value(figure.value, figure.unit), str(figure.goal or ""), _kept(figure)
        against = f"  against {figure.against}" if figure.against else ""
        lines.append(f"  {value:>12}  {goal:>8} {kept:3}  {figure.what}{against}  {figure.absolute}")
        if figure.note:
            lines.append(f"  {'':12}  {'':8} {'':3}  ({figure.note})")
    return "\n".join(lines)


def _cells(figure: Figure) -> list[str]:
    spread = "" if figure.low is None or figure.high is None else f"{figure.low:.3g} – {figure.high:.3g}"
    peak = "" if figure.peak_mib is None else f"{figure.peak_mib:.0f} MiB"
    value = _value(figure.value, figure.unit)
    return [figure.what, figure.against, value, spread, str(figure.goal or ""), _kept(figure), figure.absolute, peak]


def _value(value: float, unit: str) -> str:
    number = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{number} {unit}"


def _kept(figure: Figure) -> str:
    return {None: "", True: "yes", False: "NO"}[figure.met]

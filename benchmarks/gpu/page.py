"""One page of figures, as Markdown and JSON: what was right, how fast it was, what could not run. Pure but `write`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.findings import Findings, Number, Speed


@dataclass(frozen=True)
class Outcome:
    """One check's end.

    Attributes:
        failure: why it ended without findings: an exception, a deadline; "" when it did not.
    """

    check: str
    about: str
    seconds: float
    findings: Findings
    failure: str = ""

    @property
    def wrong(self) -> list[Number]:
        """Numbers beyond their tolerance."""
        return [number for number in self.findings.numbers if not number.is_right]

    @property
    def is_right(self) -> bool:
        """Nothing is wrong with what ran. A check that could not run is not wrong."""
        return not self.failure and not self.wrong

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "check": self.check, "about": self.about, "seconds": round(self.seconds, 1), "failure": self.failure,
            **self.findings.as_dict(),
        }  # fmt: skip


def exit_code(outcomes: Iterable[Outcome]) -> int:
    """0 when numbers were computed and every one of them is right; 1 else."""
    ended = list(outcomes)
    has_numbers = any(outcome.findings.numbers or outcome.findings.speeds for outcome in ended)
    return 0 if has_numbers and all(outcome.is_right for outcome in ended) else 1


def write(folder: Path, name: str, machine: Mapping[str, str], outcomes: Sequence[Outcome]) -> list[Path]:
    """``NAME.md`` and ``NAME.json`` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": dict(machine), "checks": [outcome.as_dict() for outcome in outcomes]}
    files = {
        folder / f"{name}.json": json.dumps(content, indent=1, ensure_ascii=False, allow_nan=True) + "\n",
        folder / f"{name}.md": markdown(machine, outcomes),
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    return list(files)


def markdown(machine: Mapping[str, str], outcomes: Sequence[Outcome]) -> str:
    """The page."""
    numbers = [number for outcome in outcomes for number in outcome.findings.numbers]
    parts = [
        "# What a GPU computes"
        if machine.get("device", "").startswith("cuda")
        else "# What `make gpu-test` computes here",
        "Made by `make gpu-test`. " + verdict(outcomes),
        _table(("", ""), machine.items()),
        "## Could not run",
        _list(not_run(outcomes)) or "Everything ran.",
        "## Failed",
        _list([f"{outcome.check}: {outcome.failure}" for outcome in outcomes if outcome.failure]) or "Nothing.",
        "## Numbers",
        _table(("what", "against", "error", "tolerance", "right?"), map(_number, numbers)) if numbers else "None.",
        "## Speeds",
        _table(("what", "figure", "share"), (_speed(s) for o in outcomes for s in o.findings.speeds)),
        "## Seconds",
        _table(("check", "about", "seconds"), ((o.check, o.about, f"{o.seconds:.0f}") for o in outcomes)),
    ]
    return "\n\n".join(parts) + "\n"


def verdict(outcomes: Sequence[Outcome]) -> str:
    """One or two sentences."""
    numbers = [number for outcome in outcomes for number in outcome.findings.numbers]
    wrong = [number for outcome in outcomes for number in outcome.wrong]
    failed = [outcome.check for outcome in outcomes if outcome.failure]
    text = f"{len(numbers) - len(wrong)} of {len(numbers)} numbers are right."
    if failed:
        text += f" Failed: {', '.join(failed)}."
    return text


def not_run(outcomes: Sequence[Outcome]) -> list[str]:
    """``CHECK: reason`` of each thing that could not be run."""
    return [f"{outcome.check}: {reason}" for outcome in outcomes for reason in outcome.findings.not_run]


def plain(outcome: Outcome) -> str:
    """One check for a terminal."""
    lines = [f"  failed: {outcome.failure}"] if outcome.failure else []
    lines += [f"  WRONG  {n.what}: {n.error:.2g} {n.measure}, at most {n.tolerance:.2g}" for n in outcome.wrong]
    lines += [f"  {' | '.join(_speed(speed))}" for speed in outcome.findings.speeds]
    lines += [f"  could not run: {reason}" for reason in outcome.findings.not_run]
    right = len(outcome.findings.numbers) - len(outcome.wrong)
    return "\n".join([*lines, f"  {right} of {len(outcome.findings.numbers)} numbers right, {outcome.seconds:.0f} s"])


def _number(number: Number) -> tuple[str, ...]:
    error = f"{number.error:.2g} {number.measure}"
    return number.what, number.against, error, f"{number.tolerance:.2g}", "yes" if number.is_right else "NO"


def _speed(speed: Speed) -> tuple[str, ...]:
    value = f"{speed.value:,.0f}" if abs(speed.value) >= 100 else f"{speed.value:.3g}"
    share = "" if speed.share is None else f"{speed.share:.3g} % of {speed.against}"
    return speed.what, f"{value} {speed.unit}", share


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(entries: Sequence[str]) -> str:
    return "\n".join(f"- {entry}" for entry in entries)

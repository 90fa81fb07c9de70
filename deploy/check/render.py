"""Lines of `vcppo check` on the terminal, under headings, as they come; or as JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from vcppo.common.check.check_lines import STATUSES, CheckLine

GROUPS = (
    "settings", "machine", "files", "network", "data", "tokenizer", "prompts", "verifier", "engine", "model",
    "generation",
)  # fmt: skip
_MARKS = {"passed": ("✓", "green"), "warned": ("!", "yellow"), "failed": ("✗", "red"), "skipped": ("–", "bright_black")}
_SLOW = 1.0  # seconds from which on a check's time is shown


class Screen:
    """Shows one group after the other; lines of a later group wait for the groups before it."""

    def __init__(self, console: Console, *, as_json: bool = False) -> None:
        self.console = console
        self.counts: Counter[str] = Counter()
        self.as_json = as_json
        self._waiting: dict[str, list[CheckLine]] = {}
        self._open: Counter[str] = Counter()  # checks of a group that are still to come
        self._shown: str | None = None
        self._named = ""

    def expect(self, groups: Iterable[str]) -> None:
        """These checks will come: one group name for each."""
        self._open.update(groups)

    def done(self, group: str) -> None:
        """One check of the group is over."""
        self._open[group] -= 1
        self._show_ready()

    def add(self, line: CheckLine) -> None:
        """Take a finding: printed at once as JSON, or with its group."""
        self.counts[line.status] += 1
        if self.as_json:
            print(json.dumps(line.as_dict(), ensure_ascii=False), flush=True)
            return
        self._waiting.setdefault(line.group, []).append(line)
        self._show_ready()

    def finish(self, seconds: float) -> None:
        """Whatever still waits, then the sum."""
        self._open.clear()
        self._show_ready()
        counts = {status: self.counts[status] for status in STATUSES}
        if self.as_json:
            print(json.dumps({"summary": counts | {"seconds": round(seconds, 1)}}), flush=True)
            return
        parts = [f"[{_MARKS[status][1]}]{count} {status}[/]" for status, count in counts.items() if count]
        self.console.print(f"\n{', '.join(parts)} in {seconds:.0f} s", highlight=False)

    def _show_ready(self) -> None:
        """Groups in order, up to the first that is not over; of that one, what there is."""
        for group in (*GROUPS, *[name for name in self._waiting if name not in GROUPS]):
            for line in self._waiting.pop(group, []):
                self._print(line)
            if self._open[group] > 0:
                return

    def _print(self, line: CheckLine) -> None:
        if line.group != self._shown:
            self._shown, self._named = line.group, ""
            self.console.print(f"\n[bold]{line.group}[/]", highlight=False)
        mark, colour = _MARKS[line.status]
        name = line.name if line.name != self._named else ""
        self._named = line.name
        took = f" [bright_black]({line.seconds:.1f} s)[/]" if line.seconds >= _SLOW else ""
        self._write(f"  [{colour}]{mark}[/] [cyan]{escape(name):<11}[/] {escape(line.text)}{took}")
        if line.remedy:
            self._write(f"    {'':<11} [{colour}]→ {escape(line.remedy)}[/]")
        for detail in line.details:
            self._write(f"    {'':<11} [bright_black]│ {escape(_printable(detail))}[/]")

    def _write(self, text: str) -> None:
        self.console.print(text, soft_wrap=True, highlight=False, emoji=False)  # train.jsonl:100: is no emoji


def _printable(text: str) -> str:
    """Control characters by their codes: a model's text must not steer the terminal."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)

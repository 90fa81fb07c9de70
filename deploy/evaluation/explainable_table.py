"""What `vcppo explainable` found, as a table and a few sentences."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from vcppo.deploy.evaluation.explainable_results import Ends, ExplainableRow
from vcppo.deploy.terminal.display import number


def explainable_table(rows: Sequence[ExplainableRow]) -> Table:
    """A row a version and position; `reached` is what the critic explains of what is explainable."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = (
        "version",
        "after tokens",
        "responses",
        "mean return",
        "explainable",
        "critic explains",
        "of explainable",
    )
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row.version),
            str(row.position),
            f"{row.prefixes}×{row.continuations}",
            f"{row.mean:.2f}",
            figure(row.explainable, row.explainable_interval),
            figure(row.explained, row.explained_interval),
            figure(row.reached, row.reached_interval, "{:.0%}"),
        )
    return table


def figure(value: float | None, interval: Ends | None, pattern: str = "{:.2f}") -> str:
    """``0.61 (0.48 to 0.73)``; a dash where it is undefined."""
    text = number(value, pattern)
    if interval is None:
        return text
    return f"{text} ({pattern.format(interval[0])} to {pattern.format(interval[1])})"


def sentences(rows: Sequence[ExplainableRow], group_size: int) -> list[str]:
    """What the figures say of the prompt alone, and of each position since the first version that was measured."""
    found: list[str] = []
    newest = max((row.version for row in rows), default=0)
    for row in rows:
        if row.version == newest and row.position == 0 and row.explainable is not None:
            text = f"The prompt alone explains {row.explainable:.2f} at version {newest}"
            if row.group_mean is not None:
                text += f"; the mean of a group's {group_size - 1} other responses would explain {row.group_mean:.2f}"
            found.append(f"{text}.")
    first = {row.position: row for row in reversed(rows) if row.position}
    for row in rows:
        before = first.get(row.position)
        if row.version == newest and before is not None and before.version < newest:
            found.extend(_fall(before, row))
    return found


def _fall(before: ExplainableRow, now: ExplainableRow) -> list[str]:
    """Did the critic's figure change with the task, or does the critic lag?"""
    if before.explained is None or now.explained is None or before.explainable is None or now.explainable is None:
        return []
    task = now.explainable - before.explainable
    change = now.explained - before.explained
    return [
        f"After {now.position} tokens, from version {before.version} to {now.version}: what the critic explains changed"
        f" by {change:+.2f}; the task's share of that is {task:+.2f}, the critic's {change - task:+.2f}."
    ]

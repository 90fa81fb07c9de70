"""Samples of RL steps as the pages ask for them: filtered, sorted, a page at a time; one with its relatives.

A file is written once, so what was read of it is kept: of each response all but its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vcppo.common.errors import VcppoError
from vcppo.common.records.sample_table import RESPONSE_COLUMNS, SampleTable, as_heads
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.samples.sources import steps_of
from vcppo.deploy.ui import beliefs
from vcppo.deploy.ui.beliefs import Believed

PAGE = 50
_KEPT_FILES = 512
_MOST_TELLING = 10
_MOST_ELSEWHERE = 30
_MOST_STEPS = 200
"""Steps that are looked through for one page: a run may have ten thousand."""
SORTS: dict[str, tuple[Callable[[pa.Table], Any], Literal["ascending", "descending"]]] = {
    "largest advantage": (lambda table: table["largest_advantage"], "descending"),
    "largest mismatch": (lambda table: table["largest_mismatch"], "descending"),
    "largest reward": (lambda table: table["reward"], "descending"),
    "smallest reward": (lambda table: table["reward"], "ascending"),
    "longest": (lambda table: table["length"], "descending"),
    "shortest": (lambda table: table["length"], "ascending"),
    "critic too hopeful": (lambda table: _surprise(table), "ascending"),
    "critic too gloomy": (lambda table: _surprise(table), "descending"),
}


class NoSamples(VcppoError):
    """There is nothing of what was asked for."""


class Wanted(NamedTuple):
    """Which samples. Empty or None: any."""

    first: int
    last: int
    outcome: str = ""
    text: str = ""
    prompt: str = ""
    group: str = ""
    min_reward: float | None = None
    max_reward: float | None = None
    min_length: int | None = None
    max_length: int | None = None

    def of(self, table: pa.Table) -> pa.Table:
        """The responses that are wanted."""
        for column, given in (("outcome", self.outcome), ("group_id", self.group), ("prompt", self.prompt)):
            if given:
                table = table.filter(pc.equal(table[column], given))
        for column, least, most in (
            ("reward", self.min_reward, self.max_reward), ("length", self.min_length, self.max_length),
        ):  # fmt: skip
            if least is not None:
                table = table.filter(pc.greater_equal(table[column], least))
            if most is not None:
                table = table.filter(pc.less_equal(table[column], most))
        if self.text:
            parts = [pc.match_substring(table[name], self.text, ignore_case=True) for name in ("response", "prompt")]
            table = table.filter(pc.or_(*parts))
        return table


class Found(NamedTuple):
    """Of a page: its heads, how many match in all, and how many steps were looked through of those asked for."""

    heads: Sequence[Mapping[str, Any]]
    num_matching: int
    num_steps: int
    num_asked: int


def find(folder: RunFolder, wanted: Wanted, sort: str, page: int) -> Found:
    """A page of what matches, from 1; the newest steps of those asked for are looked through."""
    kept = steps_of(folder)
    asked = [step for step in kept if wanted.first <= step <= wanted.last]
    steps = asked[-_MOST_STEPS:]
    matching = wanted.of(_together([kept[step] for step in reversed(steps)]))
    if sort in SORTS:
        number, order = SORTS[sort]
        matching = matching.take(pc.array_sort_indices(_flat(number(matching)), order=order))
    start = (page - 1) * PAGE
    return Found(as_heads(matching.slice(start, PAGE)), len(matching), len(steps), len(asked))


def _surprise(table: pa.Table) -> Any:
    """What came less what was believed at the end; null, and sorted last, where nothing is known of that."""
    return pc.subtract(table["reward"], pc.cast(table["believed"], "float64"))


def _flat(column: Any) -> Any:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


class Shown(NamedTuple):
    """One response: what it has once, its tokens, the others of its group, and the same problem at other steps."""

    head: Mapping[str, Any]
    tokens: dict[str, list[Any]]
    siblings: Sequence[Mapping[str, Any]]
    elsewhere: Sequence[Mapping[str, Any]]


def show(folder: RunFolder, step: int, id: str) -> Shown:
    """Raises NoSamples."""
    kept = steps_of(folder)
    path = _path(kept, step)
    heads = as_heads(_together([path]))
    number = next((number for number, head in enumerate(heads) if head["id"] == id), None)
    if number is None:
        raise NoSamples(f"{id!r} is not among the samples of step {step}: it was not kept, or the step was deleted")
    head = heads[number]
    others = [kept[other] for other in list(kept)[-_MOST_STEPS:] if other != step]
    elsewhere = Wanted(0, 0, prompt=head["prompt"]).of(_together(others)).slice(0, _MOST_ELSEWHERE)
    siblings = [each for each in heads if each["group_id"] == head["group_id"] and each["id"] != id]
    return Shown(head, SampleTable(path).tokens(number), siblings, as_heads(elsewhere))


def believed(folder: RunFolder, step: int) -> list[Believed]:
    """Of all samples of a step what the critic believed; empty without a critic. Raises NoSamples."""
    table = SampleTable(_path(steps_of(folder), step), (*RESPONSE_COLUMNS, "token_ids", "tokens", "values"))
    found = []
    for number, head in enumerate(table.heads()):
        tokens = table.tokens(number, ("values", "tokens"))
        places = [place for place, value in enumerate(tokens["values"]) if value is not None]
        if places:
            values = np.array([tokens["values"][place] for place in places])
            found.append(
                Believed(head["id"], head["outcome"], head["reward"], values, np.array(places), tokens["tokens"])
            )
    return found


class Judged(NamedTuple):
    """Of the newest step with samples: a response that the critic misjudged, and where it changed its mind most."""

    step: int
    misjudged: beliefs.Misjudged | None
    mind: beliefs.Turn


def judged(folder: RunFolder, least: float, greatest: float) -> Judged | None:
    """To begin with; None without samples or without a critic. `least` and `greatest`: the rewards of the run."""
    kept = steps_of(folder)
    if not kept:
        return None
    step = list(kept)[-1]
    found = _judged(folder, step, _written(kept[step]), least, greatest)
    return None if found is None else Judged(step, *found)


@lru_cache(maxsize=_KEPT_FILES)
def _judged(
    folder: RunFolder, step: int, written: int, least: float, greatest: float
) -> tuple[beliefs.Misjudged | None, beliefs.Turn] | None:
    """Read once: a live page asks every second."""
    responses = believed(folder, step)
    minds = beliefs.changed_minds(responses, 1)
    # Of those it misjudged most the one that shows most: where it never changed its mind there is little to see.
    worst = beliefs.misjudged(responses, least, greatest, _MOST_TELLING)
    telling = max(worst, key=lambda each: 0.0 if each.turn is None else each.turn.size, default=None)
    return (telling, minds[0]) if minds else None


def _path(kept: Mapping[int, Path], step: int) -> Path:
    if step not in kept:
        first, last = (min(kept), max(kept)) if kept else (None, None)
        among = "of no step at all" if first is None else f"of steps between {first} and {last}, not of each"
        raise NoSamples(f"there are no samples of step {step}: there are some {among}")
    return kept[step]


def _together(paths: Sequence[Path]) -> pa.Table:
    """What their responses have once, in the order of the files."""
    tables = [_read(path, written) for path in paths if (written := _written(path))]
    return pa.concat_tables(tables) if tables else pa.table({name: [] for name in RESPONSE_COLUMNS})


def _written(path: Path) -> int:
    """When: a step that is done again writes it again. 0: it is gone."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@lru_cache(maxsize=_KEPT_FILES)
def _read(path: Path, written: int) -> pa.Table:
    return SampleTable(path, RESPONSE_COLUMNS).responses()

"""Samples of RL steps as the pages ask for them: filtered, sorted, a page at a time; one with its relatives.

A file is written once, so what was read of it is kept: of each response all but its tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vcppo.common.errors import VcppoError
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.samples.sources import steps_of
from vcppo.deploy.ui.beliefs import Believed

PAGE = 50
_KEPT_FILES = 512
_MOST_STEPS = 200
"""Steps that are looked through for one page: a run may have ten thousand."""
SORTS: dict[str, Callable[[Mapping[str, Any]], float]] = {
    "largest advantage": lambda head: -head["largest_advantage"],
    "largest mismatch": lambda head: -head["largest_mismatch"],
    "largest reward": lambda head: -head["reward"],
    "smallest reward": lambda head: head["reward"],
    "longest": lambda head: -head["length"],
    "shortest": lambda head: head["length"],
    "critic too hopeful": lambda head: head["reward"] - (head["last_value"] or 0.0),
    "critic too gloomy": lambda head: (head["last_value"] or 0.0) - head["reward"],
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

    def __call__(self, head: Mapping[str, Any]) -> bool:
        """Whether a response is one."""
        reward, length, text = head["reward"], head["length"], self.text.casefold()
        return (
            (not self.outcome or head["outcome"] == self.outcome)
            and (not self.group or head["group_id"] == self.group)
            and (not self.prompt or head["prompt"] == self.prompt)
            and (self.min_reward is None or reward >= self.min_reward)
            and (self.max_reward is None or reward <= self.max_reward)
            and (self.min_length is None or length >= self.min_length)
            and (self.max_length is None or length <= self.max_length)
            and (not text or text in head["response"].casefold() or text in head["prompt"].casefold())
        )


class Found(NamedTuple):
    """Of a page: its heads, how many match in all, and how many steps were looked through of those asked for."""

    heads: Sequence[Mapping[str, Any]]
    num_matching: int
    num_steps: int
    num_asked: int


def find(folder: RunFolder, wanted: Wanted, sort: str, page: int) -> Found:
    """A page of what matches, from 1; the newest steps of those asked for are looked through."""
    asked = [step for step in steps_of(folder) if wanted.first <= step <= wanted.last]
    steps = asked[-_MOST_STEPS:]
    matching = [head for step in reversed(steps) for head in _heads(folder, step) if wanted(head)]
    if sort in SORTS:
        matching.sort(key=SORTS[sort])
    start = (page - 1) * PAGE
    return Found(matching[start : start + PAGE], len(matching), len(steps), len(asked))


class Shown(NamedTuple):
    """One response: what it has once, its tokens, the others of its group, and the same problem at other steps."""

    head: Mapping[str, Any]
    tokens: dict[str, list[Any]]
    siblings: Sequence[Mapping[str, Any]]
    elsewhere: Sequence[Mapping[str, Any]]


def show(folder: RunFolder, step: int, id: str) -> Shown:
    """Raises NoSamples."""
    heads = _heads(folder, step)
    number = next((number for number, head in enumerate(heads) if head["id"] == id), None)
    if number is None:
        raise NoSamples(f"{id!r} is not among the samples of step {step}: it was not kept, or the step was deleted")
    head = heads[number]
    others = [step_ for step_ in list(steps_of(folder))[-_MOST_STEPS:] if step_ != step]
    elsewhere = [each for other in others for each in _heads(folder, other) if each["prompt"] == head["prompt"]]
    siblings = [each for each in heads if each["group_id"] == head["group_id"] and each["id"] != id]
    return Shown(head, _table(folder, step).tokens(number), siblings, elsewhere)


def believed(folder: RunFolder, step: int) -> list[Believed]:
    """Of all samples of a step what the critic believed; empty without a critic. Raises NoSamples."""
    heads, table = _heads(folder, step), _table(folder, step)
    found = []
    for number, head in enumerate(heads):
        tokens = table.tokens(number)
        places = [place for place, value in enumerate(tokens["values"]) if value is not None]
        if places:
            values = np.array([tokens["values"][place] for place in places])
            found.append(
                Believed(head["id"], head["outcome"], head["reward"], values, np.array(places), tokens["tokens"])
            )
    return found


def _heads(folder: RunFolder, step: int) -> Sequence[Mapping[str, Any]]:
    path, written = _file(folder, step)
    return _read_heads(path, written)


def _table(folder: RunFolder, step: int) -> SampleTable:
    return SampleTable(_file(folder, step)[0])


def _file(folder: RunFolder, step: int) -> tuple[Path, int]:
    """The file of a step, and when it was written: a step that is done again writes it again."""
    path = steps_of(folder).get(step)
    try:
        if path is not None:
            return path, path.stat().st_mtime_ns
    except FileNotFoundError:
        pass
    raise NoSamples(f"there are no samples of step {step}")


@lru_cache(maxsize=_KEPT_FILES)
def _read_heads(path: Path, written: int) -> Sequence[Mapping[str, Any]]:
    return SampleTable(path).heads()

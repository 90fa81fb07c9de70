"""An agent that is an environment of the package `verifiers`, in the Python that has it: docs/agents.md.

    task: {name: verifiers, options: {python: other/bin/python, environment: my_env}}

The package wants other versions of libraries than vLLM does, so it is never imported here. `verifiers_program` runs in
the other Python, one for each environment child, and plays all rollouts of that child in its event loop. Its rubric's
reward is the rollout's.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
from collections.abc import Mapping
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

from pydantic import Field

from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.verifiers_process import PROGRAM, VerifiersProcess, first_line, other_environment
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import Chat, Problem, Split, TaskError, TaskOptions, parse_options

_LIST_SECONDS = 100.0


class VerifiersOptions(TaskOptions):
    """``task.options`` of verifiers."""

    python: str
    """The Python that has the package verifiers, such as other/bin/python of a virtual environment."""

    environment: str
    """Which of its environments: the name that `verifiers.load_environment` gets."""

    options: dict[str, Any] = Field(default_factory=dict)
    """What the environment's `load_environment` gets."""

    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of the problems held out where the environment has no evaluation data of its own."""


class VerifiersAgent(Agent):
    """See the module's text. Options: `VerifiersOptions`."""

    def __init__(self, **options: object) -> None:
        self._options = parse_options(VerifiersOptions, options, "task.options")
        first = {"environment": self._options.environment, "options": self._options.options}
        self._process = VerifiersProcess(self._options.python, first)
        self._order = lru_cache(maxsize=8)(self._draw_order)

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`: passes over the environment's data, each in its own order."""
        rows = self._rows[split]
        if not rows and count:
            raise TaskError(
                f"task.options.environment = {self._options.environment!r}: no {split} problems: name another"
            )
        passes = [divmod(number, len(rows)) for number in range(start, start + count)]
        return [rows[self._order(split, seed, turn)[place]] for turn, place in passes]

    def num_problems(self, split: Split) -> int:
        """See `Task.num_problems`."""
        return len(self._rows[split])

    async def prepare(self) -> None:
        """See `Environment.prepare`."""
        await self._process.start()

    async def run(self, answer: Mapping[str, Any], endpoint: Endpoint) -> float:
        """See `Agent.run`."""
        row = {"split": answer["split"], "row": answer["row"]}
        return await self._process.rollout({**row, **endpoint._asdict()})

    def _draw_order(self, split: Split, seed: int, number: int) -> list[int]:
        order = list(range(len(self._rows[split])))
        random.Random(f"{split} {seed} {number}").shuffle(order)
        return order

    @cached_property
    def _rows(self) -> dict[Split, list[Problem]]:
        train, held_out = (self._listed(split) for split in ("train", "held_out"))
        if not held_out:
            parts: dict[bool, list[Problem]] = {True: [], False: []}
            for each in train:
                parts[_share(each) < self._options.held_out_fraction].append(each)
            return {"train": parts[False], "held_out": parts[True]}
        known = {_key(each) for each in held_out}
        return {"train": [each for each in train if _key(each) not in known], "held_out": held_out}

    @cached_property
    def _lines(self) -> list[dict[str, Any]]:
        """All that the program says when it is asked for both splits."""
        asked = [{"number": number, "list": split} for number, split in enumerate(("train", "held_out"))]
        lines = [self._process.first, *asked]
        try:
            done = subprocess.run(
                [self._options.python, PROGRAM], input="".join(json.dumps(each) + "\n" for each in lines),
                stdout=subprocess.PIPE, text=True, timeout=_LIST_SECONDS, check=False,
                env=other_environment(self._options.python),
            )  # fmt: skip
        except OSError as error:
            raise TaskError(
                f"task.options.python = {self._options.python!r} can't be started ({error.strerror}): name the Python"
                " of the virtual environment that has the package verifiers"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise TaskError(
                f"task.options.environment = {self._options.environment!r}: it was not loaded in {_LIST_SECONDS:g} s:"
                f" load it once by {self._options.python}, so that its data are on this machine"
            ) from error
        said, _, rest = done.stdout.partition("\n")
        first_line(said.encode(), self._options.python)
        found: list[dict[str, Any]] = []
        with contextlib.suppress(JsonError):  # of a program that died; its end is missing then
            found = [parse_json(line.encode()) for line in rest.splitlines()]
        if [each["number"] for each in found if each.get("end")] != [0, 1]:
            raise TaskError(
                f"task.options.environment = {self._options.environment!r}: its problems could not be read"
                f" (exit code {done.returncode}): its own error is in the lines above"
            )
        return found

    def _listed(self, split: str) -> list[Problem]:
        number = ("train", "held_out").index(split)
        rows = [each["problem"] for each in self._lines if each["number"] == number and "problem" in each]
        return [_problem(split, place, row) for place, row in enumerate(rows)]


def _problem(split: str, place: int, row: dict[str, Any]) -> Problem:
    answer: dict[str, object] = {"split": split, "row": place, "answer": row["answer"]}
    return Problem(Chat(row["prompt"], row["tools"] or None), answer)


def _key(problem: Problem) -> str:
    """The same for problems that ask the same."""
    assert isinstance(problem.prompt, Chat)
    return json.dumps(problem.prompt.messages)


def _share(problem: Problem) -> float:
    """Of a problem's text, in [0, 1): the same question is always on one side."""
    return int.from_bytes(blake2b(_key(problem).encode(), digest_size=6).digest()) / 2**48

"""A task of several tasks with weights: of every 120 problems each source gives its share, in a drawn order.

    task:
      name: mix
      options:
        sources:
          - {name: dataset, weight: 3, options: {path: competition.jsonl}}
          - {name: chain_arithmetic, weight: 1}

Shares are exact over each period (weights in whole parts of it), so a small source is neither forgotten nor drawn twice
as often by chance; within a source problems come in its own order, none skipped, whatever the others do.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

from pydantic import Field

from vcppo.common.config import TaskConfig
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import Finding, Problem, Split, Task, TaskError, TaskOptions, Verdict, parse_options
from vcppo.common.text.question_text import question_key
from vcppo.common.text.yaml_text import one_line

PERIOD = 120  # divisible by most small sums of weights


class Source(TaskOptions):
    """One part of the mix."""

    name: str
    """A built-in task or module:Class, as task.name."""

    weight: float = Field(gt=0)
    """Its share is its weight over the sum of weights."""

    options: dict[str, object] = Field(default_factory=dict)
    """As task.options of that task."""


class MixOptions(TaskOptions):
    """``task.options`` of mix."""

    sources: list[Source] = Field(min_length=1)
    """Tasks and their weights."""


class MixTask(Task):
    """See the module's text. Options: `MixOptions`."""

    def __init__(self, **options: object) -> None:
        from vcppo.common.tasks import load_task  # it loads this module

        self.options = parse_options(MixOptions, options, "task.options")
        if any(source.name == "mix" for source in self.options.sources):
            raise TaskError("task.options.sources: a mix within a mix: give all sources in one")
        self._tasks = [load_task(TaskConfig(name=s.name, options=s.options)) for s in self.options.sources]
        if several := [
            s.name for s, task in zip(self.options.sources, self._tasks, strict=True) if task.is_environment
        ]:
            raise TaskError(
                f"task.options.sources: {several[0]} is an environment, which a mix can't hold: leave it out"
            )
        self._shares = Shares("mix", [(source.name, source.weight) for source in self.options.sources])

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`. Random access: a source's own number is counted from full periods and the rest."""
        wanted = [self._shares.place(split, seed, number) for number in range(start, start + count)]
        return [self._problem(split, seed, source, number) for source, number in wanted]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """By the source that the problem came from: its number is part of the answer."""
        inner: Any = answer["answer"]
        return self._tasks[int(str(answer["source"]))].verify(inner, response, finish_reason)

    def num_problems(self, split: Split) -> int | None:
        """Until the first source may have to begin again: full periods, and one in which it comes first."""
        known = [
            (count, share)
            for task, share in zip(self._tasks, self._shares.of_period, strict=True)
            if (count := task.num_problems(split)) is not None
        ]
        if not known:
            return None
        periods = min(count // share for count, share in known)
        return periods * PERIOD + min(count - periods * share for count, share in known)

    def size(self, split: Split) -> int | None:
        """None: no number of problems has each of every source once."""
        return None

    def parts(self) -> Sequence[Task]:
        """The sources' tasks, in the order of ``task.options.sources``."""
        return self._tasks

    def questions(self, split: Split, count: int) -> list[str]:
        """`count` of each source: an overlap is one however small the source's share."""
        return [question for task in self._tasks for question in task.questions(split, count)]

    def where(self, split: Split, seed: int, number: int) -> str:
        """As the source says it, with the source's own number of the problem."""
        source, inner = self._shares.place(split, seed, number)
        return self._tasks[source].where(split, seed, inner)

    def findings(self) -> Iterator[Finding]:
        """Each source's, and questions that one source trains on while another holds them out."""
        for task in self._tasks:
            yield from task.findings()
        held_out: dict[str, int] = {}
        for source, task in enumerate(self._tasks):
            for question in task.questions("held_out", task.size("held_out") or 0):
                held_out.setdefault(question_key(question), source)
        for source, task in enumerate(self._tasks):
            for question in task.questions("train", task.size("train") or 0):
                other = held_out.get(question_key(question))
                if other is not None and other != source:
                    text = f"trains on a question that sources[{other}] holds out: {one_line(repr(question), 80)}"
                    remedy = "drop it from one of them, or give both the same held_out_path"
                    yield Finding("error", f"task.options.sources[{source}]", text, remedy)

    def warm_up(self) -> None:
        """Each source's: any of them may judge the next response."""
        for task in self._tasks:
            task.warm_up()

    def tokenizer(self) -> Any:
        """The first source's that has one."""
        return next((made for task in self._tasks if (made := task.tokenizer()) is not None), None)

    def _problem(self, split: Split, seed: int, source: int, number: int) -> Problem:
        (problem,) = problems_of(self._tasks[source], split, seed, number, 1)
        return Problem(problem.prompt, {"source": source, "answer": problem.answer})


class Shares:
    """Which source gives which problem: exact shares of each period, in an order drawn for it.

    Args:
        name: of the task: another one draws another order.
        weights: of each source, with its name.

    Attributes:
        of_period: problems of each source in `PERIOD`.

    Raises:
        TaskError: a weight that is less than one problem in a period.
    """

    def __init__(self, name: str, weights: Sequence[tuple[str, float]]) -> None:
        self._name = name
        self.of_period = parts_of([weight for _, weight in weights], PERIOD)
        if 0 in self.of_period:
            small, weight = weights[self.of_period.index(0)]
            raise TaskError(
                f"task.options: {small} has weight {weight:g}, less than 1 in {PERIOD} problems: raise it or leave it "
                "out"
            )
        self._period = lru_cache(maxsize=64)(self._draw_period)

    def place(self, split: Split, seed: int, number: int) -> tuple[int, int]:
        """Which source gives problem `number`, and as its how-manieth."""
        period, place = divmod(number, PERIOD)
        order = self._period(split, seed, period)
        source = order[place]
        return source, period * self.of_period[source] + order[:place].count(source)

    def _draw_period(self, split: Split, seed: int, period: int) -> list[int]:
        order = [source for source, share in enumerate(self.of_period) for _ in range(share)]
        random.Random(f"{self._name}:{split}:{seed}:{period}").shuffle(order)
        return order


def parts_of(weights: list[float], whole: int) -> list[int]:
    """`whole` in integer parts in proportion to the weights: largest remainders get what rounding down leaves."""
    exact = [weight * whole / sum(weights) for weight in weights]
    parts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda i: (parts[i] - exact[i], i))
    for i in by_remainder[: whole - sum(parts)]:
        parts[i] += 1
    return parts

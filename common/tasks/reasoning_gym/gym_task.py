"""Procedural problems of the library reasoning_gym (optional extra ``vcppo[reasoning-gym]``), by its own scorers.

    task:
      name: reasoning_gym
      options:
        datasets: [leg_counting, {name: chain_sum, weight: 2, config: {max_terms: 4}}]

The response gives its answer between ``<answer>`` and ``</answer>``, as the library's own prompts ask for. Verifiers
make the entry again from its seed and index: a scorer may need what does not survive JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from pydantic import Field, field_validator

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import Finding, Problem, Split, Task, TaskError, TaskOptions, Verdict, parse_options
from vcppo.common.tasks.mix import Shares
from vcppo.common.tasks.prompts.prompt_options import Prompter, PromptOptions, judged_part
from vcppo.common.tasks.reasoning_gym.gym_source import Drawn, GymSource

_LOOKED_AT = 64  # held-out problems of each data set, for repeats


class GymDataset(TaskOptions):
    """One data set of the library."""

    name: str
    """Its name in the library."""

    weight: float = Field(default=1.0, gt=0)
    """Its share of the problems is its weight over the sum of weights."""

    config: dict[str, Any] = Field(default_factory=dict)
    """Fields of its config; the library documents them."""


class ReasoningGymOptions(PromptOptions):
    """``task.options`` of reasoning_gym."""

    datasets: list[GymDataset] = Field(min_length=1)
    """Data sets with their weights; a name alone will do."""

    correct_from: float = Field(default=1.0, gt=0, le=1)
    """A response is correct from this score on."""

    allow_eval: bool = False
    """Take data sets whose scorer runs the answer as Python, outside of any sandbox."""

    instruction: str = (
        "Think step by step, then give the final answer, and nothing else, between <answer> and </answer>."
    )
    """Follows the question in the chat form."""

    @field_validator("datasets", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        given = value if isinstance(value, list) else [value]
        return [{"name": each} if isinstance(each, str) else each for each in given]


class ReasoningGymTask(Task):
    """See the module's text. Options: `ReasoningGymOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = given = parse_options(ReasoningGymOptions, options, "task.options")
        self._prompter = Prompter(given)
        for number, each in enumerate(given.datasets):
            if any((each.name, each.config) == (other.name, other.config) for other in given.datasets[:number]):
                raise TaskError(f"task.options.datasets: {each.name} is there twice with one config: add their weights")
        self._sources = [GymSource(each.name, each.config, allow_eval=given.allow_eval) for each in given.datasets]
        self._shares = Shares("reasoning_gym", [(each.name, each.weight) for each in given.datasets])
        self._draw = lru_cache(maxsize=1024)(self._drawn)

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`: number i is a pure function of (split, seed, i)."""
        return [self._problem(split, seed, number) for number in range(start, start + count)]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """By the data set's own scorer: correct from ``correct_from`` on."""
        final = judged_part(self.options, response, finish_reason)
        text = None if final is None else answer_in(final)
        if text is None:
            return Verdict("unparsable", None)
        return Verdict("correct" if self.score(answer, text) >= self.options.correct_from else "wrong", text)

    def score(self, answer: Mapping[str, Any], text: str) -> float:
        """The library's score of an answer, 0 to 1.

        Raises:
            TaskError: another version of the library makes another question there.
        """
        source: GymSource = self._sources[answer["dataset"]]
        seed, index = answer["seed"], answer["index"]
        if _digest(source.entry(seed, index)["question"]) != answer["digest"]:
            raise TaskError(f"{source.name} (seed {seed}, index {index}) is another question here: install one version")
        return source.score(text, seed, index)

    def where(self, split: Split, seed: int, number: int) -> str:
        """Data set, seed and index."""
        source, drawn = self._draw(split, seed, number)
        return f"{self._sources[source].name} (seed {drawn.seed}, index {drawn.place})"

    def questions(self, split: Split, count: int) -> list[str]:
        """The first `count` questions of each data set, without what all prompts share."""
        return [source.draw(split, 0, number).entry["question"] for source in self._sources for number in range(count)]

    def findings(self) -> Iterator[Finding]:
        """Data sets with so few problems that they repeat. Held-out ones are fewer, so it shows there first."""
        for place, source in enumerate(self._sources):
            found = {source.draw("held_out", 0, number).entry["question"] for number in range(_LOOKED_AT)}
            if (repeated := _LOOKED_AT - len(found)) > 0:
                text = f"{source.name}: {repeated} of {_LOOKED_AT} held-out problems are asked twice"
                remedy = "widen its config, or give it less weight"
                yield Finding("warning", f"task.options.datasets[{place}]", text, remedy)

    def warm_up(self) -> None:
        """Makes an entry of each data set: some load words or boards first."""
        for source in self._sources:
            source.entry(0, 0)

    def _problem(self, split: Split, seed: int, number: int) -> Problem:
        source, drawn = self._draw(split, seed, number)
        known = drawn.entry["answer"]
        answer: dict[str, object] = {"answer": known} if isinstance(known, str) else {}
        question = drawn.entry["question"]
        answer |= {"dataset": source, "seed": drawn.seed, "index": drawn.place, "digest": _digest(question)}
        return Problem(self._prompter.prompt(question.strip()), answer)

    def _drawn(self, split: Split, seed: int, number: int) -> tuple[int, Drawn]:
        source, inner = self._shares.place(split, seed, number)
        return source, self._sources[source].draw(split, seed, inner)


def answer_in(text: str) -> str | None:
    """What stands in the last closed ``<answer>``; None: there is none."""
    before, closed, _ = text.rpartition("</answer>")
    _, opened, answer = before.rpartition("<answer>")
    return answer.strip() if closed and opened else None


def _digest(question: str) -> str:
    return blake2b(question.encode(errors="replace"), digest_size=8).hexdigest()

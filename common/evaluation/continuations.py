"""Responses of a policy and what became of them when they were continued anew: the records of `vcppo explainable`.

    <folder>/<plan>.<worker>.jsonl    a line a response, and a line a continuation, in the order they finished
    <folder>/<plan>.inputs.json       what they depend on, so that a person can see what differs

`<plan>` is a hash of whatever they depend on, as in an evaluation (`vcppo.common.evaluation.eval_samples`). Not in it:
how many responses, which positions and how many continuations. Each has a seed of its own, so more can be added.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from vcppo.common.files.json_lines import LineFile, read_json_lines
from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.trajectory import FinishReason, Outcome


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Response(_Line):
    """A whole response to a problem: its first tokens are the prefixes.

    Attributes:
        problem: its number in the sequence of problems.
        prompt, tokens: token ids.
        log_probs: of each of `tokens`, nats, of the distribution sampled from; None in files of earlier versions.
    """

    kind: Literal["response"] = "response"
    problem: NonNegativeInt
    prompt: list[NonNegativeInt] = Field(min_length=1)
    tokens: list[NonNegativeInt] = Field(min_length=1)
    outcome: Outcome
    reward: FiniteFloat
    finish_reason: FinishReason
    log_probs: list[FiniteFloat] | None = None

    @model_validator(mode="after")
    def _one_log_prob_a_token(self) -> Self:
        if self.log_probs is not None and len(self.log_probs) != len(self.tokens):
            raise ValueError(f"log_probs: {len(self.log_probs)} for {len(self.tokens)} tokens")
        return self


class Continuation(_Line):
    """What became of the first `position` tokens of a problem's response when they were continued once more.

    Attributes:
        sample: its number among the continuations from there.
        length: tokens, without the prefix.
    """

    kind: Literal["continuation"] = "continuation"
    problem: NonNegativeInt
    position: NonNegativeInt
    sample: NonNegativeInt
    outcome: Outcome
    reward: FiniteFloat
    length: PositiveInt


class LeftOut(_Line):
    """A problem whose prompt leaves no room for a response; `tokens` is its length."""

    kind: Literal["left_out"] = "left_out"
    problem: NonNegativeInt
    tokens: PositiveInt


Line = Response | Continuation | LeftOut
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="kind")])


class Wanted(NamedTuple):
    """How much: problems 0 to `num_responses` - 1, and from each of `positions` so many continuations."""

    num_responses: int
    positions: tuple[int, ...]
    num_continuations: int


@dataclass
class Continued:
    """What is there of a plan. A continuation is known by (problem, position, sample)."""

    responses: dict[int, Response] = field(default_factory=dict)
    continuations: dict[tuple[int, int, int], Continuation] = field(default_factory=dict)
    left_out: dict[int, LeftOut] = field(default_factory=dict)

    def add(self, line: Line) -> None:
        """Of what is there twice, the first counts."""
        if isinstance(line, Response):
            self.responses.setdefault(line.problem, line)
        elif isinstance(line, Continuation):
            self.continuations.setdefault((line.problem, line.position, line.sample), line)
        else:
            self.left_out.setdefault(line.problem, line)

    def missing_of(self, problem: int, wanted: Wanted) -> list[tuple[int, int]]:
        """(position, sample) of what is to be made of a response that is there; none at positions beyond its end."""
        length = len(self.responses[problem].tokens)
        return [
            (position, sample)
            for position in wanted.positions
            if position < length
            for sample in range(wanted.num_continuations)
            if (problem, position, sample) not in self.continuations
        ]

    def is_complete(self, wanted: Wanted) -> bool:
        """Whether nothing is to be made."""
        return all(
            problem in self.left_out or (problem in self.responses and not self.missing_of(problem, wanted))
            for problem in range(wanted.num_responses)
        )

    def lengths(self, wanted: Wanted) -> list[int]:
        """Tokens of each response."""
        return [len(self.responses[p].tokens) for p in range(wanted.num_responses) if p in self.responses]

    def problems_at(self, position: int, wanted: Wanted) -> list[int]:
        """Problems whose response goes on beyond `position`."""
        return [
            problem
            for problem in range(wanted.num_responses)
            if problem in self.responses and position < len(self.responses[problem].tokens)
        ]

    def returns_at(self, position: int, wanted: Wanted, gamma: float) -> NDArray[np.float64]:
        """``[N, K]`` float64: returns from the state after `position` tokens, in the order of `problems_at`.

        The reward is given on the last token, so gamma counts the tokens before it.
        """
        rows = [
            [self.continuations[problem, position, sample] for sample in range(wanted.num_continuations)]
            for problem in self.problems_at(position, wanted)
        ]
        returns = [[each.reward * gamma ** (each.length - 1) for each in row] for row in rows]
        return np.array(returns, np.float64).reshape(len(rows), wanted.num_continuations)


class ContinuationFiles:
    """The lines of one plan in `folder`. `add` appends to this worker's own file."""

    def __init__(self, folder: Path, plan: str, worker: int = 0) -> None:
        self.folder, self.plan = folder, plan
        self._file = LineFile(folder / f"{plan}.{worker}.jsonl")

    def read(self) -> Continued:
        """All workers' lines, also of workers that were killed; a line that broke off is none."""
        found = Continued()
        for path in sorted(self.folder.glob(f"{self.plan}.*.jsonl")):
            for row in read_json_lines(path):
                with suppress(ValidationError):
                    found.add(_LINE.validate_python(row))
        return found

    def note_inputs(self, inputs: Mapping[str, Any]) -> None:
        """Write down what the plan depends on. Several workers may write the same."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / f"{self.plan}.inputs.json", json.dumps(inputs, indent=1, default=str) + "\n")

    def add(self, line: Line) -> None:
        """On its way to the disk when this returns: a killed process loses none it has added."""
        self._file.write(line.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        self._file.close()

"""The smallest environment: the policy must ask for a digit it can't know, then repeat it. Turns of one token and EOS.

    prompt 123?C   the policy asks    C      the environment answers 4      the policy says   4      reward 1

Every problem has a digit for each letter, drawn for it. The environment answers whichever letter is asked. Anything
else ends the rollout without a reward, and so does the digit of another letter than the prompt's.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import Field

from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.tasks.chain_arithmetic import EOS, PAD, is_in, symbol_tokenizer
from vcppo.common.tasks.interface import Demonstration, Problem, Split, TaskOptions, parse_options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = "0123456789"
_KEYS = 1000


class LookUpOptions(TaskOptions):
    """``task.options`` of look_up."""

    num_letters: int = Field(default=6, ge=2, le=26)
    """Letters that can be asked for."""


class LookUpStyle(TaskOptions):
    """``style`` of the demonstrations: each is one turn."""

    careless: float = Field(default=0.0, ge=0, le=1)
    """Share of last turns that say any digit, whatever was answered."""


class LookUp(Environment):
    """See the module's text. Options: `LookUpOptions`."""

    def __init__(self, **options: object) -> None:
        self._letters = _LETTERS[: parse_options(LookUpOptions, options, "task.options").num_letters]
        self._wanted, self._table, self._has_asked = "", dict[str, str](), False

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`."""
        return [self._problem(split, random.Random(f"{split} {seed} {i}")) for i in range(start, start + count)]

    def reset(self, answer: Mapping[str, object]) -> None:
        """See `Environment.reset`."""
        self._wanted, self._has_asked = str(answer["letter"]), False
        self._table = dict(zip(self._letters, str(answer["digits"]), strict=True))

    def step(self, action: str) -> Observation:
        """See `Environment.step`."""
        said = action.strip()
        if not self._has_asked and said in self._table:
            self._has_asked = True
            return Observation(self._table[said])
        return Observation(reward=float(self._has_asked and said == self._table[self._wanted]), done=True)

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """See `Task.demonstrations`. First and last turns by turns."""
        careless = parse_options(LookUpStyle, style, "sft style").careless
        return [self._turn(random.Random(f"demonstration {seed} {i}"), i % 2 == 0, careless) for i in range(count)]

    def tokenizer(self) -> Tokenizer:
        """See `Task.tokenizer`: a token a symbol."""
        return symbol_tokenizer([PAD, EOS, "?", *_DIGITS, *_LETTERS], f"{PAD}|{EOS}|.")

    def _problem(self, split: Split, draw: random.Random) -> Problem:
        while True:
            prompt = f"{draw.randrange(_KEYS):03d}?{draw.choice(self._letters)}"
            if is_in(split, prompt):
                digits = "".join(draw.choices(_DIGITS, k=len(self._letters)))
                return Problem(prompt, {"letter": prompt[-1], "digits": digits})

    def _turn(self, draw: random.Random, is_first: bool, careless: float) -> Demonstration:
        prompt, answer = self._problem("train", draw)
        letter = str(answer["letter"])
        if is_first:
            return Demonstration(prompt, letter)
        digit = str(answer["digits"])[self._letters.index(letter)]
        said = draw.choice(_DIGITS) if draw.random() < careless else digit
        return Demonstration(f"{prompt}{letter}{EOS}{digit}", said)

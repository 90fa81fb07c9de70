"""Many small decisions of which nobody says which were right: the built-in task where credit assignment matters.

A prompt names the kinds of the first decisions, and a mark. The response takes n decisions in their turn, each in a
line of its own; after the last kind that was named the list begins again. Each kind has one right option, always the
same one, which no prompt ever tells. The response is correct when at least as many choices are right as the mark asks
for. With two kinds named, n = 3, and 12 tokens a decision::

    <1>B<2>D={2}
    <1>B:abcdef>B2
    <2>D:abcdef>D0
    <3>B:abcdef>B2

A choice is one token, which names its kind and option. The outcome is one bit for all n choices. Yet each choice
stands in the text when it is made, so a critic that has found out the right options can tell at once whether it was
good. What can be explained of the outcome at each position is known exactly
(tests/unit/rig/hidden_choices_oracle.py).

Marks are drawn from a range, so some prompts are at the edge of being solved at every skill: a policy that is right
in a share p of its choices solves prompts with marks below about p n, and none above. Where marks are all of 1 to n,
its accuracy is p itself. So there is no ceiling before all options of all kinds are known.

Demonstrations choose uniformly at random: the cold start teaches the form and nothing of the options.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field, model_validator

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.chain_arithmetic import EOS, PAD, is_in, symbol_tokenizer
from vcppo.common.tasks.interface import (
    Demonstration,
    Problem,
    Split,
    Task,
    TaskOptions,
    Verdict,
    parse_options,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_KINDS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_FILLER = _KINDS.lower()
_FIXED_TOKENS = 6  # of a line: number, kind, colon, arrow, option, line break


class HiddenChoicesOptions(TaskOptions):
    """``task.options`` of hidden_choices."""

    num_decisions: int = Field(default=40, ge=8, le=99)
    """n: decisions a response has to take."""

    num_kinds: int = Field(default=10, ge=2, le=26)
    """Kinds of decision. Each that a prompt names is one of them, drawn at random."""

    num_named: int = Field(default=8, ge=8, le=99)
    """Kinds that a prompt names. After the last one the list begins again."""

    num_options: int = Field(default=3, ge=2, le=10)
    """What each decision can choose from: one option is right."""

    tokens_per_decision: int = Field(default=12, ge=_FIXED_TOKENS, le=_FIXED_TOKENS + len(_FILLER))
    """Length of a line. What is beyond 6 are letters that always stand there."""

    min_mark: int | None = Field(default=None, ge=1)
    """Marks are drawn from this to max_mark; null: an eighth of num_decisions."""

    max_mark: int | None = Field(default=None, ge=1)
    """The highest mark; null: num_decisions, which asks for every choice to be right."""

    secret: int = Field(default=0, ge=0)
    """Which options are right is a function of this number."""

    @model_validator(mode="after")
    def _marks_are_a_range(self) -> HiddenChoicesOptions:
        low, high = self.marks
        if not low <= high <= self.num_decisions:
            raise ValueError(
                f"min_mark = {low}, max_mark = {high}: need min_mark <= max_mark <= num_decisions ="
                f" {self.num_decisions}"
            )
        return self

    @property
    def marks(self) -> tuple[int, int]:
        """Lowest and highest mark, with the defaults worked out."""
        low = self.num_decisions // 8 if self.min_mark is None else self.min_mark
        return low, self.num_decisions if self.max_mark is None else self.max_mark


class HiddenChoicesStyle(TaskOptions):
    """``style`` of the demonstrations. Their choices are always random."""

    num_decisions: int | None = Field(default=None, ge=1)
    """Responses end after so many decisions; null: after all. To look up a kind is learnt in minutes on eight
    decisions, and not in ten on forty at once. The later ones are then copied from the round before."""


class ChoiceProblem(NamedTuple):
    """The kind of each of the n decisions, a letter each, and how many have to be right."""

    kinds: str
    mark: int


class HiddenChoices(Task):
    """See the module's text. Options: `HiddenChoicesOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = parse_options(HiddenChoicesOptions, options, "task.options")
        self._filler = _FILLER[: self.options.tokens_per_decision - _FIXED_TOKENS]
        self._symbols = "0123456789"[: self.options.num_options]

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`. Which problems are held out is a property of their text, so splits never meet."""
        drawn = (self._draw(split, random.Random(f"{split}:{seed}:{start + i}")) for i in range(count))
        return [Problem(self._prompt(each), {"kinds": each.kinds, "mark": each.mark}) for each in drawn]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Right when the policy ended a response of the whole form, and the mark is reached.

        What differs from the form in a single character is unparsable. `Verdict.extracted`: how many were right.
        """
        kinds, mark = str(answer["kinds"]), int(str(answer["mark"]))
        choices = self._choices(kinds, response) if finish_reason == "stop" else None
        if choices is None:
            return Verdict("unparsable", None)
        num_right = sum(chosen == self.right_option(kind) for kind, chosen in zip(kinds, choices, strict=True))
        return Verdict("correct" if num_right >= mark else "wrong", str(num_right))

    def right_option(self, kind: str) -> str:
        """The digit of the kind's right option: a pure function of ``secret`` and the kind."""
        digest = blake2b(f"{self.options.secret}:{kind}".encode(), digest_size=8).digest()
        return self._symbols[int.from_bytes(digest, "big") % len(self._symbols)]

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """See `Task.demonstrations`: the form, with every choice uniformly random."""
        shown = parse_options(HiddenChoicesStyle, style, "sft.phases.style").num_decisions
        rng = random.Random(f"demonstrations:{seed}")
        drawn = [self._draw("train", rng) for _ in range(count)]
        return [Demonstration(self._prompt(each), self._response(each.kinds[:shown], rng)) for each in drawn]

    def tokenizer(self) -> Tokenizer:
        """One token a symbol; ``<7>`` is the number of a decision, ``{7}`` a mark, ``B2`` the choice of an option.

        Two kinds of number, because the model looks up what follows ``<7>`` in the prompt. A choice is one token, so
        that whether it was right is a matter of one embedding: two tokens that only together are right or wrong were
        not told apart by a small critic in 160 steps of value pretraining.
        """
        numbers = range(1, self.options.num_decisions + 1)
        marks = [*(f"<{i}>" for i in numbers), *(f"{{{i}}}" for i in numbers)]
        kinds = _KINDS[: self.options.num_kinds]
        choices = [f"{kind}{symbol}" for kind in kinds for symbol in self._symbols]
        symbols = [PAD, EOS, *"=:>\n", *kinds, *choices, *self._filler, *marks]
        return symbol_tokenizer(symbols, r"<[a-z0-9]+>|\{[0-9]+\}|[A-Z][0-9]|[\s\S]")

    def _draw(self, split: Split, rng: random.Random) -> ChoiceProblem:
        """A problem of `split`: draws are repeated until the problem's own hash puts it there."""
        letters = _KINDS[: self.options.num_kinds]
        while True:
            named = [rng.choice(letters) for _ in range(min(self.options.num_named, self.options.num_decisions))]
            kinds = "".join(named[i % len(named)] for i in range(self.options.num_decisions))
            problem = ChoiceProblem(kinds, rng.randint(*self.options.marks))
            if is_in(split, self._prompt(problem)):
                return problem

    def _prompt(self, problem: ChoiceProblem) -> str:
        kinds = problem.kinds[: self.options.num_named]
        named = "".join(f"<{number}>{kind}" for number, kind in enumerate(kinds, start=1))
        return f"{named}={{{problem.mark}}}"

    def _head(self, number: int, kind: str) -> str:
        """A line up to the option's digit."""
        return f"<{number}>{kind}:{self._filler}>{kind}"

    def _response(self, kinds: str, rng: random.Random) -> str:
        heads = (self._head(number, kind) for number, kind in enumerate(kinds, start=1))
        return "".join(f"{head}{rng.choice(self._symbols)}\n" for head in heads)

    def _choices(self, kinds: str, response: str) -> list[str] | None:
        """The digit chosen in each line; None: the response has not the form."""
        lines = response.split("\n")
        if len(lines) != len(kinds) + 1 or lines[-1]:
            return None
        choices = []
        for number, (kind, line) in enumerate(zip(kinds, lines, strict=False), start=1):
            head, chosen = line[:-1], line[-1:]
            if head != self._head(number, kind) or chosen not in self._symbols or not chosen:
                return None
            choices.append(chosen)
        return choices

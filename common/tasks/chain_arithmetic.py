"""Iterated modular arithmetic with a long chain of thought: the built-in task of the demo.

A 3-digit x, then K operations ``x <- (x * m + b) mod 1000`` with m in 2-9 (or less) and b in 0-9. The prompt names each
operation's m by a capital letter and its b by the small one; the response thinks one line a step, then gives the
last x. With K = 3::

    864A8a6B2b4C5c0=
    <think>
    #A8a6;4*8+6=38;6*8+3=51;8*8+5=69;>918
    ~B>840
    ?B2b4;8*2+4=20;1*2+2=04;9*2+0=18;>840
    ~C>200
    </think>200

A *careful* step (``#``) restates the operation and multiplies digit by digit with carries, lowest
digit first; a *sloppy* one (``~``) just asserts its result, which a small model can only guess; a *check* (``?``)
after it is the careful working again and puts a wrong guess right. So length is worth something, as in the paper:
careful responses are right, short ones wrong.
Each number of the prompt stands right behind a symbol of its own, and is copied before it is used: a look-up of that
kind is learnt by every small model, while "the number three places behind the letter" is learnt for one operation
at a time, or not at all, as the seed will have it.
(The line break after ``<think>`` above is for the reader; there is none in the response.)
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import (
    Demonstration,
    Problem,
    Split,
    Task,
    TaskError,
    TaskOptions,
    Verdict,
    parse_options,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

PAD, EOS, THINK, END_THINK = "<pad>", "<eos>", "<think>", "</think>"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MIN_LETTERS = 9  # so every K up to 9 shares one tokenizer
_HELD_OUT_SHARE = 8  # one possible problem in 8 is held out


def is_in(split: Split, prompt: str) -> bool:
    """Which problems are held out is a property of their text, so the splits never meet, whatever is drawn."""
    digest = blake2b(prompt.encode(), digest_size=4).digest()
    return (int.from_bytes(digest, "big") % _HELD_OUT_SHARE == 0) == (split == "held_out")


def symbol_tokenizer(symbols: Sequence[str], pattern: str) -> Tokenizer:
    """One token a symbol, numbered in their order, with `PAD` and `EOS` among them.

    Args:
        pattern: a regular expression of the `tokenizers` library that finds one symbol after the other in a text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([PAD, EOS])
    return tokenizer


class ChainOptions(TaskOptions):
    """``task.options`` of chain_arithmetic."""

    num_operations: int = Field(default=6, ge=1, le=26)
    """K: operations in a row. Careful responses have about 38 K tokens."""

    max_multiplier: int = Field(default=9, ge=2, le=9)
    """m is drawn from 2 to this; smaller ones are learned faster."""

    num_digits: int = Field(default=3, ge=1, le=9)
    """Digits of x; everything is modulo 10 to this power."""


class ChainStyle(TaskOptions):
    """``style`` of the demonstrations. A response is *long* or *short*, which differ in how many steps are sloppy."""

    long_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of responses in the long style."""

    long_sloppy: float = Field(default=0.4, ge=0, le=1)
    """Probability that a step of a long response is sloppy."""

    short_sloppy: float = Field(default=0.95, ge=0, le=1)
    """Probability that a step of a short response is sloppy."""

    check: float = Field(default=0.3, ge=0, le=1)
    """Probability that a sloppy step is checked."""

    num_operations: int | None = Field(default=None, ge=1)
    """Operations of a demonstration, any of the task's letters in their order; null: the task's number. Looking an
    operation up is learnt on few, and not on many (docs/long_horizon.md)."""


class Operation(NamedTuple):
    """``x <- x * multiplier + addend``, called `letter` in the prompt, its addend by the same letter in lower case."""

    letter: str
    multiplier: int
    addend: int


class ChainProblem(NamedTuple):
    """A start value and the operations to apply to it."""

    start: int
    operations: tuple[Operation, ...]


class ChainArithmetic(Task):
    """See the module's text. Options: `ChainOptions`; demonstration styles: `ChainStyle`."""

    version = 2

    def __init__(self, **options: object) -> None:
        self.options = parse_options(ChainOptions, options, "task.options")
        self._modulus: int = 10**self.options.num_digits

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`. Which problems are held out is a property of their text, so splits never meet."""
        chains = (self._draw(split, random.Random(f"{split}:{seed}:{start + i}")) for i in range(count))
        return [Problem(self._prompt(chain), {"value": self._value(chain)}) for chain in chains]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Right when the text after ``</think>`` is exactly the digits of the last x, and the policy ended there."""
        _, end, given = response.rpartition(END_THINK)
        if not end or finish_reason != "stop" or len(given) != self.options.num_digits or not given.isdecimal():
            return Verdict("unparsable", None)
        return Verdict("correct" if given == answer["value"] else "wrong", given)

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """See `Task.demonstrations`; `style` is a `ChainStyle`."""
        chain_style = parse_options(ChainStyle, style, "sft.phases.style")
        rng = random.Random(f"demonstrations:{seed}")
        shown = chain_style.num_operations
        if shown is not None and shown > self.options.num_operations:
            raise TaskError(
                f"sft.phases.style.num_operations = {shown}: the task has {self.options.num_operations}: lower it"
            )
        chains = [self._draw("train", rng, shown) for _ in range(count)]
        return [Demonstration(self._prompt(chain), self._response(chain, chain_style, rng)) for chain in chains]

    def tokenizer(self) -> Tokenizer:
        """One token a symbol; ``<think>`` and ``</think>`` are ordinary tokens, so decoding keeps them."""
        letters = _LETTERS[: max(_MIN_LETTERS, self.options.num_operations)]
        symbols = [PAD, EOS, THINK, END_THINK, *"0123456789", *"*+=;>#~?\n", *letters, *letters.lower()]
        return symbol_tokenizer(symbols, r"<[a-z/]+>|[\s\S]")

    def _draw(self, split: Split, rng: random.Random, num_operations: int | None = None) -> ChainProblem:
        """A problem of `split`, of so many operations: drawn again until the problem's own hash puts it there."""
        letters = _LETTERS[: self.options.num_operations]
        while True:
            named = letters if num_operations is None else sorted(rng.sample(letters, num_operations))
            operations = tuple(
                Operation(letter, rng.randint(2, self.options.max_multiplier), rng.randint(0, 9)) for letter in named
            )
            chain = ChainProblem(rng.randrange(self._modulus), operations)
            if is_in(split, self._prompt(chain)):
                return chain

    def _prompt(self, chain: ChainProblem) -> str:
        return f"{self._digits(chain.start)}{''.join(map(self._operation, chain.operations))}="

    def _operation(self, operation: Operation) -> str:
        letter, multiplier, addend = operation
        return f"{letter}{multiplier}{letter.lower()}{addend}"

    def _value(self, chain: ChainProblem) -> str:
        x = chain.start
        for operation in chain.operations:
            x = self._apply(x, operation)
        return self._digits(x)

    def _response(self, chain: ChainProblem, style: ChainStyle, rng: random.Random) -> str:
        sloppy = style.long_sloppy if rng.random() < style.long_fraction else style.short_sloppy
        lines, x = [], chain.start
        for operation in chain.operations:
            result = self._apply(x, operation)
            if rng.random() >= sloppy:
                lines.append("#" + self._working(x, operation))
            elif rng.random() >= style.check:
                lines.append(f"~{operation.letter}>{self._digits(result)}")
            else:
                # Half the checked guesses are wrong: else nothing tells the model to go on from the check's result.
                guess = result if rng.random() < 0.5 else rng.randrange(self._modulus)
                lines.append(f"~{operation.letter}>{self._digits(guess)}")
                lines.append("?" + self._working(x, operation))
            x = result
        return THINK + "".join(line + "\n" for line in lines) + END_THINK + self._digits(x)

    def _working(self, x: int, operation: Operation) -> str:
        """``A8a6;4*8+6=38;6*8+3=51;8*8+5=69;>918``: the operation, then digit by digit, carries in the tens."""
        carry, parts = operation.addend, []
        for digit in reversed(self._digits(x)):
            total = int(digit) * operation.multiplier + carry
            parts.append(f"{digit}*{operation.multiplier}+{carry}={total:02d};")
            carry = total // 10
        return f"{self._operation(operation)};{''.join(parts)}>{self._digits(self._apply(x, operation))}"

    def _apply(self, x: int, operation: Operation) -> int:
        return (x * operation.multiplier + operation.addend) % self._modulus

    def _digits(self, x: int) -> str:
        return f"{x:0{self.options.num_digits}d}"

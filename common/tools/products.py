"""The questions of `vcppo demo --task tools`: products of two numbers, which a small model can't work out but may ask.

    the prompt            473*829
    the policy asks       <tool_call>{"name": "calculator", "arguments": {"expression": "473*829"}}</tool_call>
    and is told           392117
    and says              392117

A model from scratch gets a tokenizer of one token a character. What stands around an expression is one token too: the
text is what any model would write, and is read by the same code.
"""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.chain_arithmetic import EOS, PAD, is_in, symbol_tokenizer
from vcppo.common.tasks.interface import Demonstration, Problem, Split, Task, TaskOptions, Verdict, parse_options

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_BEFORE = '<tool_call>{"name": "calculator", "arguments": {"expression": "'
_BEHIND = '"}}</tool_call>'
_TOOL, _ASSISTANT, _TOLD, _END_TOLD = "<tool>", "<assistant>", "<tool_response>", "</tool_response>"
_TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool.function.name }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role == 'tool' %}<tool_response>{{ message.content }}</tool_response>"
    "{% elif message.role == 'assistant' %}<assistant>{{ message.content }}<eos>"
    "{% else %}{{ message.content }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class ProductsOptions(TaskOptions):
    """``task.options`` of products."""

    num_digits: int = Field(default=3, ge=1, le=9)
    """Digits of each factor."""


class ProductsStyle(TaskOptions):
    """``style`` of the demonstrations: each is one turn."""

    asks: float = Field(default=1.0, ge=0, le=1)
    """Share of first turns that ask the calculator; the others say the product at once."""


class _Drawn(NamedTuple):
    text: str
    product: str


class Products(Task):
    """See the module's text. Options: `ProductsOptions`; demonstration styles: `ProductsStyle`."""

    def __init__(self, **options: object) -> None:
        digits = parse_options(ProductsOptions, options, "task.options").num_digits
        self._least, self._end = 10 ** (digits - 1), 10**digits

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`."""
        numbers = range(start, start + count)
        drawn = [self._draw(split, random.Random(f"{split} {seed} {number}")) for number in numbers]
        return [Problem([_asked(each)], {"product": each.product}) for each in drawn]

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Right when the response is exactly the digits of the product."""
        said = response.strip()
        if finish_reason != "stop" or not re.fullmatch("[0-9]+", said):
            return Verdict("unparsable", None)
        return Verdict("correct" if said == answer["product"] else "wrong", said)

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """See `Task.demonstrations`. First and last turns by turns; `style` is a `ProductsStyle`."""
        asks = parse_options(ProductsStyle, style, "sft.phases.style").asks
        return [self._turn(random.Random(f"demonstration {seed} {i}"), i % 2 == 0, asks) for i in range(count)]

    def tokenizer(self) -> Tokenizer:
        """One token a printable character, and one for each mark."""
        marks = [_BEFORE, _BEHIND, _TOOL, _ASSISTANT, _TOLD, _END_TOLD]
        pattern = "|".join([*map(re.escape, [PAD, EOS, *marks]), r"[\s\S]"])
        return symbol_tokenizer([PAD, EOS, *marks, *string.printable], pattern)

    def chat_template(self) -> str:
        """See `Task.chat_template`: it names the tools."""
        return _TEMPLATE

    def _draw(self, split: Split, draw: random.Random) -> _Drawn:
        while True:
            left, right = draw.randrange(self._least, self._end), draw.randrange(self._least, self._end)
            if is_in(split, text := f"{left}*{right}"):
                return _Drawn(text, str(left * right))

    def _turn(self, draw: random.Random, is_first: bool, asks: float) -> Demonstration:
        drawn = self._draw("train", draw)
        call = f"{_BEFORE}{drawn.text}{_BEHIND}"
        if is_first:
            return Demonstration([_asked(drawn)], call if draw.random() < asks else drawn.product)
        said = [{"role": "assistant", "content": call}, {"role": "tool", "content": drawn.product}]
        return Demonstration([_asked(drawn), *said], drawn.product)


def _asked(drawn: _Drawn) -> dict[str, str]:
    return {"role": "user", "content": drawn.text}

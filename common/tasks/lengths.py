"""How many tokens a task's prompts have, and which leave no room for a response: all of them in one go.

The tokenizer gets prompts in batches, which is several times faster than one by one: see `encode_prompts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import Split, Task, Text
from vcppo.common.tasks.prompts.chat import num_bytes, without_words

LengthsOf = Callable[[Sequence[Text]], Sequence[int]]
"""Prompts to their numbers of tokens."""

BATCH = 4096  # prompts that are made into text and tokens at once
_NUM_NAMED = 10
_SPARE = 32  # tokens: a template may write more around some text than around none


class PromptRoom(NamedTuple):
    """What a prompt may have, and why: ``tokens`` = ``limit`` of ``field`` - ``response``."""

    tokens: int
    field: str
    limit: int
    response: int


class LongPrompt(NamedTuple):
    """A prompt without room: the number of its problem, the place it comes from, its length in tokens."""

    number: int
    where: str
    tokens: int


@dataclass(frozen=True)
class PromptLengths:
    """Lengths of all prompts of a split.

    Attributes:
        room: what a prompt may have.
        num_prompts: how many were looked at.
        longest: tokens, of those that were made into tokens; 0 without any.
        too_long: those beyond the room, longest first.
    """

    split: Split
    room: PromptRoom
    num_prompts: int
    longest: int
    too_long: tuple[LongPrompt, ...]

    @classmethod
    def of(
        cls, split: Split, room: PromptRoom, num_prompts: int, longest: int, too_long: Iterable[LongPrompt]
    ) -> PromptLengths:
        """With `too_long` in any order."""
        return cls(split, room, num_prompts, longest, tuple(sorted(too_long, key=lambda each: -each.tokens)))

    @property
    def leaves_none(self) -> bool:
        """Every prompt is too long."""
        return len(self.too_long) == self.num_prompts

    @property
    def needed(self) -> int:
        """What ``generator.max_model_len`` must be for all of them."""
        return self.longest + self.room.response

    def describe(self) -> str:
        """Which they are, for a message; the first ten by place."""
        shown = [f"{each.where} ({each.tokens} tokens)" for each in self.too_long[:_NUM_NAMED]]
        more = len(self.too_long) - len(shown)
        return ", ".join(shown) + (f" and {more} more" if more else "")

    def problem(self) -> str:
        """The fault in words, with its figures."""
        room, count = self.room, len(self.too_long)
        return (
            f"{count} of {self.num_prompts} {self.split} prompts are too long: {self.describe()}. A prompt may have"
            f" {room.tokens} tokens ({room.field} = {room.limit} less sampling.max_response_tokens = {room.response})"
        )

    def remedy(self) -> str:
        """What helps, with the values to set."""
        learner = " and learner.micro_batch_tokens to at least as much" if self.split == "train" else ""
        longer = f"set generator.max_model_len={self.needed}{learner}"
        if self.leaves_none:
            return f"{longer}, or shorten the rows"
        return f"{longer}, shorten or drop the rows, or leave them out by task.overlong=skip"


def prompt_room(config: VcppoConfig, split: Split = "train") -> PromptRoom:
    """Of the limits, the lowest: held-out prompts go to the engine alone, the others to the learner, too."""
    limits = {"generator.max_model_len": config.generator.max_model_len}
    if split == "train":
        learner = config.learner
        limits["learner.micro_batch_tokens"] = learner.micro_batch_tokens * learner.sequence_parallel_size
    field = min(limits, key=lambda name: limits[name])
    response = config.sampling.max_response_tokens
    return PromptRoom(limits[field] - response, field, limits[field], response)


def measure_prompts(
    config: VcppoConfig, task: Task, split: Split, lengths: LengthsOf, *, exact: bool = False
) -> PromptLengths | None:
    """Lengths of a split's prompts, each problem once; None: there is no end to them. Of a mix with a source that has
    no end, those of the others.

    Args:
        exact: make tokens of all of them. Else a prompt is left alone whose bytes are fewer than the tokens it may
            have: a byte-level tokenizer never makes more tokens than there are bytes. What a tokenizer that enlarges
            text gets past this, `PromptSource` meets later, and passes over.
    """
    parts = [(part, size) for part in task.parts() if (size := part.size(split)) is not None]
    if not parts:
        return None
    room = prompt_room(config, split)
    found = [_measure(part, split, size, room.tokens, lengths, exact) for part, size in parts]
    num_prompts, longest = sum(size for _, size in parts), max(longest for longest, _ in found)
    return PromptLengths.of(split, room, num_prompts, longest, (each for _, some in found for each in some))


def _measure(
    task: Task, split: Split, size: int, room: int, lengths: LengthsOf, exact: bool
) -> tuple[int, list[LongPrompt]]:
    """The longest prompt that was made into tokens, and those that are too long, in their order."""
    longest, found = 0, []
    added: int | None = None
    for start, prompts in _batches(task, split, size):
        if added is None and not exact:
            added = _added_tokens(prompts[0], lengths)
        kept = [i for i, prompt in enumerate(prompts) if exact or num_bytes(prompt) + (added or 0) > room]
        for number, tokens in zip(kept, lengths([prompts[i] for i in kept]), strict=True):
            longest = max(longest, tokens)
            if tokens > room:
                found.append(LongPrompt(start + number, task.where(split, 0, start + number), tokens))
    return longest, found


def _added_tokens(prompt: Text, lengths: LengthsOf) -> int:
    """What the tokenizer and the chat template add to a prompt's own text, and a little more."""
    return lengths([without_words(prompt)])[0] + _SPARE


def _batches(task: Task, split: Split, size: int) -> Iterator[tuple[int, list[Text]]]:
    for start in range(0, size, BATCH):
        problems = problems_of(task, split, 0, start, min(BATCH, size - start))
        yield start, [problem.prompt for problem in problems]

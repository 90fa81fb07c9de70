"""The prompts: exactly as the model will get them, and whether each leaves room for a response."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from vcppo.common.check.check_lines import Result, failed, passed, warned
from vcppo.common.tasks import Chat, Problem, Split, TaskError, Text, encode_prompt
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.lengths import PromptLengths, measure_prompts, prompt_room
from vcppo.common.tasks.prompts.chat import as_chat, ignored, render, shown_texts
from vcppo.generator.check.data_context import Context
from vcppo.generator.check.tokenizer_checks import decode

NUM_SHOWN = 3
_MAX_SHOWN = 1200  # characters
_EXACT_UP_TO = 20_000  # prompts; of more, only those are made into tokens that may be too long
_SAMPLED = 1000  # prompts of a task without end
_SAMPLED_AT_ONCE = 50
_SAMPLING_SECONDS = 20.0  # some tasks take long to make a problem
_SPLITS: tuple[Split, ...] = ("train", "held_out")


def shown(context: Context) -> Iterator[Result]:
    """Three real prompts, special tokens and all."""
    tokenizer = context.tokenizer
    for problem in context.problems(NUM_SHOWN):
        try:
            ids = encode_prompt(tokenizer, problem.prompt).tolist()
        except TaskError as error:
            yield failed(str(error), "")
            return
        yield look_at(tokenizer, problem.prompt, ids)


def look_at(tokenizer: Any, prompt: Text, ids: list[int]) -> Result:
    """One prompt, shown, and what is odd about it."""
    text = decode(tokenizer, ids)
    lines = tuple(_shortened(text).split("\n"))
    count = f"{len(ids)} tokens"
    if not ids:
        return failed("a prompt without any token", "give the rows a question, or the template some text")
    lost = [part for part in shown_texts(prompt) if _words(part) not in _words(text)]
    if lost:
        return failed(
            f"{count}; the model never sees {lost[0][:80]!r}",
            "the chat template leaves it out: mend the template, or set task.options.prompt_template",
            *lines,
        )
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:
        return warned(
            f"{count}; it begins with {tokenizer.bos_token!r} twice",
            "both the template and the tokenizer add it: take it out of one of them",
            *lines,
        )
    return passed(count, *lines) if isinstance(prompt, str) else _look_at_chat(tokenizer, as_chat(prompt), count, lines)


def _look_at_chat(tokenizer: Any, chat: Chat, count: str, lines: tuple[str, ...]) -> Result:
    """What is odd about what the chat template does."""
    if not _opens_turn(tokenizer, chat):
        return warned(
            f"{count}; the chat template does not open the assistant's turn (add_generation_prompt has no effect)",
            "the model has to begin its turn itself: mend the template unless it was trained like this",
            *lines,
        )
    if unseen := ignored(tokenizer, chat):
        return warned(
            f"{count}; the chat template takes no notice of {', '.join(unseen)}",
            "the prompt is the same without it: use a model whose template knows it, or leave it out",
            *lines,
        )
    return passed(count, *lines)


def lengths(context: Context) -> Iterator[Result]:
    """All prompts of both splits, in one go."""
    for split in _SPLITS:
        sizes = [part.size(split) for part in context.task.parts()]
        if not any(size is None or size for size in sizes):
            continue
        exact = sum(size or 0 for size in sizes) <= _EXACT_UP_TO
        found = measure_prompts(context.config, context.task, split, context.lengths, exact=exact)
        if found is not None:
            yield _line(context, found, exact)
        if None in sizes:
            yield _sampled(context, split)


def _line(context: Context, found: PromptLengths, exact: bool) -> Result:
    if not found.too_long:
        longest = f"the longest has {found.longest}" if exact else "none is longer"
        return passed(f"{found.split}: {found.num_prompts:,} prompts, room for {found.room.tokens} tokens, {longest}")
    if context.config.task.overlong == "skip" and not found.leaves_none:
        return warned(f"{found.problem()}: left out (task.overlong = skip)", "")
    return failed(found.problem(), found.remedy())


def _sampled(context: Context, split: Split) -> Result:
    """A task without end: some of its problems."""
    room = prompt_room(context.config, split)
    problems: list[Problem] = []
    deadline = time.monotonic() + _SAMPLING_SECONDS
    while len(problems) < _SAMPLED and (not problems or time.monotonic() < deadline):
        problems += problems_of(context.task, split, context.config.run.seed, len(problems), _SAMPLED_AT_ONCE)
    count = len(problems)
    found = context.lengths([problem.prompt for problem in problems])
    text = f"{split}: {count} of a task without end, room for {room.tokens} tokens, the longest has {max(found)}"
    too_long = sum(tokens > room.tokens for tokens in found)
    if too_long == count:
        learner = " and learner.micro_batch_tokens too" if split == "train" else ""
        return failed(text, f"set generator.max_model_len={max(found) + room.response}{learner}")
    if too_long:
        return warned(f"{text}: {too_long} are too long, and will be passed over", f"raise {room.field}")
    return passed(text)


def _opens_turn(tokenizer: Any, chat: Chat) -> bool:
    return render(tokenizer, chat) != render(tokenizer, chat, add_generation_prompt=False)


def _words(text: str) -> str:
    """Without white space, which templates trim."""
    return "".join(text.split())


def _shortened(text: str) -> str:
    if len(text) <= _MAX_SHOWN:
        return text
    half = _MAX_SHOWN // 2
    return f"{text[:half]}\n[… {len(text) - 2 * half} characters …]\n{text[-half:]}"

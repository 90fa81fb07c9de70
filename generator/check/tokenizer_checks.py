"""The tokenizer: the one that its tokenizer.json says, with an embedding for every token, and tokens that end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vcppo.common.check.check_lines import Result, failed, passed, warned
from vcppo.common.tasks import Text
from vcppo.common.tasks.prompts.chat import own_texts
from vcppo.generator.check.data_context import Context
from vcppo.generator.vllm_engine.end_tokens import end_tokens

NUM_PROBLEMS = 200


def loads(context: Context) -> Result:
    """Load it as generators and the learner will."""
    tokenizer = context.tokenizer
    return passed(f"{type(tokenizer).__name__}, {len(tokenizer):,} tokens")


def text(context: Context) -> Iterator[Result]:
    """The run's own prompts and references: the same ids as tokenizer.json gives, and back to the same text."""
    tokenizer = context.tokenizer
    texts = sorted(
        {text for problem in context.problems(NUM_PROBLEMS) for text in texts_of(problem.prompt, problem.answer)}
    )
    if difference := _difference(tokenizer, Path(context.config.model.path).expanduser() / "tokenizer.json", texts):
        yield failed(
            f"the loaded tokenizer is not what tokenizer.json says: {difference}",
            "save it again: PreTrainedTokenizerFast(tokenizer_file='tokenizer.json').save_pretrained(FOLDER)",
        )
        return
    lost = [each for each in texts if decode(tokenizer, encode(tokenizer, each)).strip() != each.strip()]
    if lost:
        seen = decode(tokenizer, encode(tokenizer, lost[0]))
        yield warned(
            f"{len(lost)} of {len(texts)} prompts and references don't come back from tokens: {lost[0][:60]!r} becomes"
            f" {seen[:60]!r}",
            "the policy can't read or write these as they are: use a model whose tokenizer knows their characters",
        )
        return
    yield passed(f"{len(texts)} prompts and references become the ids of tokenizer.json, and the same text again")


def vocabulary(context: Context) -> Result:
    """Every token has an embedding."""
    from transformers import AutoConfig

    tokenizer, model = context.tokenizer, context.config.model
    config = AutoConfig.from_pretrained(model.path, trust_remote_code=model.trust_remote_code)
    size = int(config.get_text_config().vocab_size)
    ids = tokenizer.get_vocab()
    beyond = sorted((number, token) for token, number in ids.items() if number >= size)
    if beyond:
        shown = ", ".join(f"{token!r} ({number})" for number, token in beyond[:5])
        return failed(
            f"{len(beyond)} tokens have no embedding (the model has {size:,}): {shown}",
            "such a token ends generator and learner: resize_token_embeddings() and save the model again, or drop them",
        )
    return passed(f"{max(ids.values(), default=0) + 1:,} tokens, {size:,} embeddings")


def stop_tokens(context: Context) -> Iterator[Result]:
    """What ends a response; and whether the chat template's own end of a turn is among it."""
    model, sampling = context.config.model, context.config.sampling
    # Raises when the folder names none.
    found = sorted({*end_tokens(model.path, model.trust_remote_code), *sampling.stop_token_ids})
    tokenizer = context.tokenizer
    shown = ", ".join(f"{tokenizer.convert_ids_to_tokens(number)!r} ({number})" for number in found)
    if sampling.stop:
        shown += "; strings: " + ", ".join(map(repr, sampling.stop))
    known = set(tokenizer.get_vocab().values())
    if unknown := [number for number in found if number not in known]:
        yield failed(
            f"{shown}; the tokenizer has no token {', '.join(map(str, unknown))}",
            "correct eos_token_id in the model's generation_config.json and config.json, or sampling.stop_token_ids",
        )
        return
    end = turn_end(tokenizer)
    if end is not None and end not in found:
        yield warned(
            f"{shown}; but the chat template ends a turn with {tokenizer.convert_ids_to_tokens(end)!r} ({end})",
            f"responses may run on to the length limit: set sampling.stop_token_ids=[{end}]",
        )
        return
    yield passed(shown)


def turn_end(tokenizer: Any) -> int | None:
    """The special token that the chat template writes after an assistant's words; None: none, or no template."""
    if tokenizer.chat_template is None:
        return None
    messages = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "two"}]
    try:
        rendered = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # noqa: BLE001  (a template may raise whatever it likes; how it does with prompts is looked at there)
        return None
    after = encode(tokenizer, rendered.rpartition("two")[2])
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    return next((number for number in after if number in special), None)


def texts_of(prompt: Text, answer: dict[str, object]) -> Iterator[str]:
    """Text in a problem: its messages, and whatever is text in its answer."""
    yield from own_texts(prompt)
    yield from strings_in(answer)


def strings_in(value: object) -> Iterator[str]:
    """All text in nested dicts and lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings_in(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings_in(each)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of the text alone: no BOS, no EOS, no template."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(tokenizer: Any, ids: list[int]) -> str:
    """Text of the ids as they are, special tokens included and no space cleaned away."""
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _difference(tokenizer: Any, file: Path, texts: list[str]) -> str:
    """Where the tokenizer differs from tokenizers' own reading of the file; empty: nowhere, or there is no file."""
    if not file.is_file():
        return ""
    from tokenizers import Tokenizer

    reference = Tokenizer.from_file(str(file))
    reference.no_truncation()
    reference.no_padding()
    for each, expected in zip(texts, reference.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = encode(tokenizer, each)
        if ids != expected.ids:
            return f"{each[:60]!r} becomes {ids[:8]} and not {expected.ids[:8]}"
    return ""

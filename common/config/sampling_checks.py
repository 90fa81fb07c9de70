"""What must hold of ``sampling``, of the evaluation's sampling, and of engine options that change either.

PPO's ratio compares the policy's probability of a token with that of the distribution it was sampled from. Whatever
bends that distribution (a nucleus, a penalty, a bias), and that the learner does not do too, makes the ratio of an
unchanged policy differ from 1. So RL samples from the policy itself, at a temperature that the learner applies as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vcppo.common.config.tree import VcppoConfig

MOST_STOP_STRINGS = 16
MOST_STOP_CHARACTERS = 256
MOST_STOP_TOKENS = 256
_BENDING_OPTIONS = {
    "generation_config": "sampling defaults of a model folder",
    "override_generation_config": "sampling defaults",
    "logits_processors": "code that changes logits",
    "watermark_config": "a watermark",
}
_ESCAPES = ("\\n", "\\t", "\\r", "\\u")


def sampling_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction."""
    sampling, evaluation = config.sampling, config.eval
    for name, value, off in (("top_p", sampling.top_p, 1.0), ("top_k", sampling.top_k, 0)):
        if value != off:
            yield (
                f"sampling.{name} = {value}: RL can't train on a truncated distribution: the generator's log-probs are"
                " of the tokens kept, the learner's of all tokens, so their ratio is not 1 for an unchanged policy:"
                f" set sampling.{name} to {off:g}; to evaluate with it, set eval.{name}"
            )
    for name, meaning in _BENDING_OPTIONS.items():
        if name in config.generator.engine_options:
            yield (
                f"generator.engine_options.{name}: not to be set: {meaning} would make the generator sample from"
                " another distribution than the one the learner trains: leave it out, and use the fields of sampling"
            )
    yield from _stop_problems(config)
    temperature = sampling.temperature if evaluation.temperature is None else evaluation.temperature
    if temperature == 0 and evaluation.samples_per_problem > 1:
        yield (
            f"eval.temperature = 0 with eval.samples_per_problem = {evaluation.samples_per_problem}: all samples of a"
            " problem would be the same: set eval.samples_per_problem and eval.k to 1, or a temperature above 0"
        )


def sampling_warnings(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per stop string that is probably not what is meant."""
    stop = config.sampling.stop
    for text in stop:
        if escape := next((each for each in _ESCAPES if each in text), None):
            yield (
                f"sampling.stop: {text!r} holds a backslash and a letter, not the character that {escape} stands for:"
                " YAML reads escapes in double quotes only"
            )
        if shorter := next((each for each in stop if each != text and each in text), None):
            yield f"sampling.stop: {text!r} never ends a response: {shorter!r} is in it and ends it first"


def _stop_problems(config: VcppoConfig) -> Iterator[str]:
    stop, tokens = config.sampling.stop, config.sampling.stop_token_ids
    if len(stop) > MOST_STOP_STRINGS:
        yield (
            f"sampling.stop: {len(stop)} strings: each is looked for after every token, so at most {MOST_STOP_STRINGS}:"
            " keep those that end an answer"
        )
    for text in stop:
        if not text:
            yield "sampling.stop: '' is in every text and would end each response at its first token: leave it out"
        elif len(text) > MOST_STOP_CHARACTERS:
            yield f"sampling.stop: a string of {len(text)} characters: at most {MOST_STOP_CHARACTERS}: shorten it"
        elif "\ufffd" in text:
            yield (
                f"sampling.stop: {text!r} holds U+FFFD, which stands for bytes that are no character: name the token in"
                " sampling.stop_token_ids instead"
            )
    for again in sorted({text for text in stop if stop.count(text) > 1}):
        yield f"sampling.stop: {again!r} is given twice: keep one"
    if len(tokens) > MOST_STOP_TOKENS:
        yield f"sampling.stop_token_ids: {len(tokens)} tokens: at most {MOST_STOP_TOKENS}"

"""Samples as text for a person and as JSON lines for a program; token ids are decoded only for what is shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import IO, Any

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Int32Array
from vcppo.common.telemetry.log_render import printable
from vcppo.deploy.samples.sources import Sample
from vcppo.deploy.samples.token_table import token_table

_DIM, _BOLD, _RESET = "\x1b[2m", "\x1b[1m", "\x1b[0m"
_COLOURS = {"correct": "\x1b[32m", "wrong": "\x1b[31m"}
_YELLOW = "\x1b[33m"

Decode = Callable[[Int32Array], str]


class Decoder:
    """The run's tokenizer, loaded when the first ids are decoded: that takes seconds."""

    def __init__(self, config: VcppoConfig, path: str | None) -> None:
        self._path, self._trust = path or config.model.path, config.model.trust_remote_code
        self._tokenizer: Any = None

    def __call__(self, ids: Int32Array) -> str:
        """Text with its special tokens: whether a response ended is part of what it says."""
        if self._tokenizer is None:
            from vcppo.common.model_folder.tokenizer import load_tokenizer

            self._tokenizer = load_tokenizer(self._path, self._trust)
        return str(self._tokenizer.decode(ids.tolist(), skip_special_tokens=False))


def heading(sample: Sample) -> str:
    """``rl step 12 · rl-00000003-1@generator-0.0 · correct · reward 1 · 87 tokens · stop``."""
    parts = [sample.place, sample.id, sample.outcome]
    if sample.reward is not None:
        named = ", ".join(f"{name} {value:g}" for name, value in sample.components.items())
        parts.append(f"reward {sample.reward:g}" + (f" ({named})" if named else ""))
    if sample.turn_rewards:
        parts.append("by turn " + ", ".join(f"{reward:g}" for reward in sample.turn_rewards))
    parts += [f"{sample.length} tokens", "cut by length" if sample.finish_reason == "length" else sample.finish_reason]
    if versions := versions_of(sample):
        spans = [f"v{version}" for version, _ in versions]
        parts.append(spans[0] if len(spans) == 1 else f"{spans[0]} to {spans[-1]}")
    if sample.extracted is not None:
        parts.append(f"answer {sample.extracted!r}")
    return " · ".join(parts)


def versions_of(sample: Sample) -> list[tuple[int, int]]:
    """(policy version, tokens) in turn."""
    if sample.tokens is None:
        return list(sample.versions)
    return [(version, len(list(run))) for version, run in groupby(sample.tokens()["versions"])]


def show(
    samples: Sequence[Sample], decode: Decode, stream: IO[str], *, colour: bool, with_tokens: bool = False
) -> None:
    """Heading, prompt and response of each; where wanted and known, a table of its tokens."""

    def painted(text: str, code: str) -> str:
        return f"{code}{text}{_RESET}" if colour else text

    for sample in samples:
        title = painted(printable(heading(sample)), _BOLD + _COLOURS.get(sample.outcome, _YELLOW))
        prompt = "" if sample.prompt is None else painted(printable(_text(sample.prompt, decode)).rstrip(), _DIM)
        response = printable(_text(sample.response, decode)).rstrip()
        stream.write(f"── {title}\n" + (f"{prompt}\n" if prompt else "") + f"{painted('»', _DIM)} {response}\n\n")
        if with_tokens and sample.tokens is not None:
            stream.write(token_table(sample.tokens()) + "\n\n")


def show_json(samples: Sequence[Sample], decode: Decode, stream: IO[str], *, with_tokens: bool = False) -> None:
    """One object a line; where wanted and known, with `tokens`, an object of lists."""
    for sample in samples:
        line = {
            "stage": sample.stage, "step": sample.step, "id": sample.id, **sample.more, "outcome": sample.outcome,
            "reward": sample.reward, "components": sample.components, "turn_rewards": sample.turn_rewards,
            "length": sample.length, "finish_reason": sample.finish_reason, "versions": versions_of(sample),
            "generator": sample.generator, "extracted": sample.extracted,
            "prompt": None if sample.prompt is None else _text(sample.prompt, decode),
            "response": _text(sample.response, decode),
        }  # fmt: skip
        if sample.tokens is not None:
            line |= {"largest_advantage": sample.largest_advantage, "largest_mismatch": sample.largest_mismatch}
            if with_tokens:
                line["tokens"] = sample.tokens()
        stream.write(json.dumps(line) + "\n")


def _text(content: Int32Array | str, decode: Decode) -> str:
    return content if isinstance(content, str) else decode(content)

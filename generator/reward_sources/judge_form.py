"""What a judge is asked, and the number in what it replies. Pure."""

from __future__ import annotations

import json
import re
from typing import Any

from vcppo.common.config import JudgeConfig
from vcppo.common.config.reward_sources import PLACEHOLDER
from vcppo.common.rewards.reward_parts import number_of
from vcppo.generator.reward_sources.items import Asked

_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?")
_MOST_OF_REPLY = 20_000  # characters, from the end: a pattern may be slow on long text


def filled(template: str, item: Asked) -> str:
    """The template with its placeholders replaced, all at once: one in a response stays text.

    Raises:
        ValueError: the template asks for a part of the answer that there is not.
    """

    def text_of(match: re.Match[str]) -> str:
        what, part, answer = match[1], match[2], item.answer
        if what == "answer":
            if part is None:
                return json.dumps(dict(answer), ensure_ascii=False)
            if part not in answer:
                raise ValueError(
                    f"{match[0]}: the problem's answer has no {part!r}, but {', '.join(answer) or 'nothing'}"
                )
            value = answer[part]
            return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if part is not None:
            return match[0]
        if what == "messages":
            return json.dumps(item.conversation, ensure_ascii=False)
        return item.prompt if what == "prompt" else item.response

    return PLACEHOLDER.sub(text_of, template)


def chat_request(config: JudgeConfig, text: str) -> dict[str, Any]:
    """The body of ``POST url/chat/completions``."""
    return {
        "model": config.model,
        "messages": [{"role": "user", "content": text}],
        "temperature": config.temperature,
        "max_tokens": config.max_tokens,
        "n": 1,
    }


def reply_in(body: Any) -> str:
    """The text of a chat completion. ValueError: there is none."""
    try:
        text = body["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        raise ValueError("no chat completion: choices[0].message.content is missing") from None
    if not isinstance(text, str):
        raise ValueError(f"the reply's content is a {type(text).__name__}: was it cut within its reasoning?")
    return text


def grade_in(config: JudgeConfig, reply: str) -> float:
    """The judge's number, within `config.scale`. ValueError: the reply holds none."""
    seen = reply[-_MOST_OF_REPLY:]
    pattern = _NUMBER if config.pattern is None else re.compile(config.pattern)
    texts = [match[pattern.groups] for match in pattern.finditer(seen)]
    if not texts or texts[-1] is None:
        raise ValueError("no number" if config.pattern is None else "the pattern is not found")
    try:
        number = number_of("grade", float(texts[-1]))
    except ValueError as error:
        raise ValueError(f"{texts[-1][:40]!r} is no number ({error})") from None
    low, high = sorted(config.scale)
    if not low <= number <= high:
        raise ValueError(f"{number:g} is beyond task.judge.scale = [{config.scale[0]:g}, {config.scale[1]:g}]")
    return number


def reward_of(config: JudgeConfig, grade: float, wrong: float, correct: float) -> float:
    """The grade's place between the rewards of wrong and correct."""
    low, high = config.scale
    share = (grade - low) / (high - low)
    return wrong * (1.0 - share) + correct * share

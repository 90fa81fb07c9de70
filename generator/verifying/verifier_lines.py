"""The lines between a generator and its verifier children: one JSON object each way, of bounded length.

A request has a number and its reply repeats it: a child that says more or less than it was asked is found out, and does
not give each response the verdict of the one before. What a child says is checked: the task in it may be anybody's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast, get_args

from vcppo.common.files.json_file import parse_json
from vcppo.common.records.trajectory import FinishReason, Outcome
from vcppo.common.rewards.reward_parts import number_of, parts_of_verdict
from vcppo.common.tasks import Verdict

MAX_REPLY_BYTES = 1 << 16
READY = 0
"""The number of the first reply: the child is up."""
_MAX_TEXT = 1000
_OUTCOMES = get_args(Outcome)
_FIELDS = {"number", "outcome", "extracted", "reward", "components", "detail"}


class Reply(NamedTuple):
    """A verdict, and why the task failed if it did."""

    verdict: Verdict
    detail: str | None


def request_line(
    number: int,
    answer: Mapping[str, object],
    response: str,
    finish_reason: FinishReason,
    messages: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    """What the child is asked; `messages` are for the reward functions."""
    request = {
        "number": number, "answer": answer, "response": response, "finish_reason": finish_reason, "messages": messages,
    }  # fmt: skip
    return json.dumps(request).encode() + b"\n"


def reply_line(number: int, verdict: Verdict, detail: str | None = None) -> str:
    """What the child answers. ValueError or TypeError when the task's verdict is none."""
    outcome, extracted, reward, components = Verdict(*verdict)
    if outcome not in _OUTCOMES:
        raise ValueError(f"outcome {str(outcome)[:_MAX_TEXT]!r} is none of {', '.join(_OUTCOMES)}")
    said = [None if text is None else str(text)[:_MAX_TEXT] for text in (extracted, detail)]
    numbers = {"reward": _reward(reward), "components": parts_of_verdict(components)}
    reply = {"number": number, "outcome": outcome, "extracted": said[0], **numbers, "detail": said[1]}
    return json.dumps(reply) + "\n"


def parse_reply(line: bytes, number: int) -> Reply:
    """The reply to request `number`. ValueError for anything else."""
    reply = parse_json(line)
    if type(reply) is not dict or reply.keys() != _FIELDS:
        raise ValueError(f"no reply: {line[:80]!r}")
    if type(reply["number"]) is not int or reply["number"] != number:
        raise ValueError(f"a reply to request {str(reply['number'])[:20]}, not {number}")
    if reply["outcome"] not in _OUTCOMES:
        raise ValueError(f"no outcome: {str(reply['outcome'])[:80]!r}")
    extracted, detail = _text(reply["extracted"]), _text(reply["detail"])
    numbers = _reward(reply["reward"]), parts_of_verdict(reply["components"])
    return Reply(Verdict(cast(Outcome, reply["outcome"]), extracted, *numbers), detail)


def _reward(value: Any) -> float | None:
    return None if value is None else number_of("reward", value)


def _text(value: Any) -> str | None:
    if value is not None and type(value) is not str:
        raise ValueError(f"a {type(value).__name__} where text should be")
    return None if value is None else value[:_MAX_TEXT]

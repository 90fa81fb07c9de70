"""The lines between a generator and its environment children: one JSON object each way, of bounded length.

A request names its rollout and has a number, which its reply repeats: many may be under way in one child. ``close`` has
no reply. What a child says is checked: the environment in it may be anybody's.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, cast

from vcppo.common.environments.environment import Observation, checked
from vcppo.common.files.json_file import parse_json

MAX_REPLY_BYTES = 1 << 22
MAX_REQUEST_BYTES = 1 << 26
READY = 0
"""The number of the first reply: the child is up."""
_MAX_TEXT = 1000

Call = Literal["reset", "step", "close"]
Fault = Literal["timeout", "crash"]


class Ready(NamedTuple):
    """What a child says when it is up.

    Attributes:
        is_async: its calls may overlap.
        is_chat: the task's prompts are chats.
    """

    is_async: bool
    is_chat: bool


class Answer(NamedTuple):
    """The reply to one call: an observation (empty after `reset`), or a fault."""

    observation: Observation
    fault: Fault | None = None
    detail: str | None = None


def request_line(number: int, rollout: int, call: Call, given: object = None) -> bytes:
    """What the child is asked; `given` is the problem's answer, or the action."""
    return json.dumps({"number": number, "rollout": rollout, "call": call, "given": given}).encode() + b"\n"


def ready_line(ready: Ready) -> str:
    """The child's first line."""
    return json.dumps({"number": READY, "is_async": ready.is_async, "is_chat": ready.is_chat}) + "\n"


def answer_line(number: int, answer: Answer) -> str:
    """What the child answers."""
    seen = answer.observation
    reply = {
        "number": number, "content": seen.content, "reward": seen.reward, "done": seen.done, "outcome": seen.outcome,
        "fault": answer.fault, "detail": None if answer.detail is None else answer.detail[:_MAX_TEXT],
    }  # fmt: skip
    return json.dumps(reply) + "\n"


def parse_ready(line: bytes) -> Ready:
    """ValueError for anything else."""
    reply = _parse(line, {"number", "is_async", "is_chat"})
    if reply["number"] != READY or not all(type(reply[name]) is bool for name in ("is_async", "is_chat")):
        raise ValueError(f"no first reply: {line[:80]!r}")
    return Ready(reply["is_async"], reply["is_chat"])


def parse_answer(line: bytes) -> tuple[int, Answer]:
    """(number, answer). ValueError for anything else."""
    reply = _parse(line, {"number", "content", "reward", "done", "outcome", "fault", "detail"})
    fault, detail = reply["fault"], reply["detail"]
    if type(reply["number"]) is not int or fault not in (None, "timeout", "crash"):
        raise ValueError(f"no reply: {line[:80]!r}")
    if detail is not None and type(detail) is not str:
        raise ValueError(f"a {type(detail).__name__} where text should be")
    if type(reply["reward"]) is not float:
        raise ValueError(f"a {type(reply['reward']).__name__} where a reward should be")
    seen = checked(Observation(reply["content"], reply["reward"], reply["done"], reply["outcome"]))
    return reply["number"], Answer(seen, cast(Fault | None, fault), detail)


def _parse(line: bytes, fields: set[str]) -> dict[str, Any]:
    reply = parse_json(line)
    if type(reply) is not dict or reply.keys() != fields:
        raise ValueError(f"no reply: {line[:80]!r}")
    return reply

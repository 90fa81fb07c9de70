"""The lines between a generator and its environment children: one JSON object each way, of bounded length.

A request names its rollout and has a number, which its reply repeats: many may be under way in one child. ``close`` has
no reply. What a child says is checked: the environment in it may be anybody's.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple, cast

from vcppo.common.environments.environment import Observation, ToolUse, checked
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
        template: variables that they give the chat template beside messages: ``tools`` and others.
    """

    is_async: bool
    is_chat: bool
    template: dict[str, Any]


class Answer(NamedTuple):
    """The reply to one call: an observation (empty after `reset`), or a fault.

    Attributes:
        is_lost: what the rollout needs in its child is gone, and not by its own fault.
        has_died: the child, while the call was under way: nobody knows by whose fault.
    """

    observation: Observation
    fault: Fault | None = None
    detail: str | None = None
    is_lost: bool = False
    has_died: bool = False


def request_line(number: int, rollout: int, call: Call, given: object = None) -> bytes:
    """What the child is asked; `given` is the problem's answer, or the action."""
    return json.dumps({"number": number, "rollout": rollout, "call": call, "given": given}).encode() + b"\n"


def ready_line(ready: Ready) -> str:
    """The child's first line."""
    return json.dumps({"number": READY, **ready._asdict()}) + "\n"


def answer_line(number: int, answer: Answer) -> str:
    """What the child answers."""
    seen = answer.observation
    reply = {
        "number": number, "content": seen.content, "reward": seen.reward, "done": seen.done, "outcome": seen.outcome,
        "tools": seen.tools, "fault": answer.fault, "is_lost": answer.is_lost,
        "detail": None if answer.detail is None else answer.detail[:_MAX_TEXT],
    }  # fmt: skip
    return json.dumps(reply) + "\n"


def parse_ready(line: bytes) -> Ready:
    """ValueError for anything else."""
    reply = _parse(line, {"number", *Ready._fields})
    ready = Ready(*(reply[name] for name in Ready._fields))
    kinds = (type(ready.is_async), type(ready.is_chat), type(ready.template))
    if reply["number"] != READY or kinds != (bool, bool, dict):
        raise ValueError(f"no first reply: {line[:80]!r}")
    return ready


def parse_answer(line: bytes) -> tuple[int, Answer]:
    """(number, answer). ValueError for anything else."""
    reply = _parse(line, {"number", "content", "reward", "done", "outcome", "tools", "fault", "detail", "is_lost"})
    fault, detail = reply["fault"], reply["detail"]
    if type(reply["number"]) is not int or fault not in (None, "timeout", "crash"):
        raise ValueError(f"no reply: {line[:80]!r}")
    if detail is not None and type(detail) is not str:
        raise ValueError(f"a {type(detail).__name__} where text should be")
    if type(reply["is_lost"]) is not bool:
        raise ValueError(f"a {type(reply['is_lost']).__name__} where is_lost should be")
    if type(reply["reward"]) is not float:
        raise ValueError(f"a {type(reply['reward']).__name__} where a reward should be")
    use = ToolUse(*reply["tools"]) if isinstance(reply["tools"], list) and len(reply["tools"]) == 3 else reply["tools"]
    seen = checked(Observation(reply["content"], reply["reward"], reply["done"], reply["outcome"], use))
    return reply["number"], Answer(seen, cast(Fault | None, fault), detail, reply["is_lost"])


def _parse(line: bytes, fields: set[str]) -> dict[str, Any]:
    reply = parse_json(line)
    if type(reply) is not dict or reply.keys() != fields:
        raise ValueError(f"no reply: {line[:80]!r}")
    return reply

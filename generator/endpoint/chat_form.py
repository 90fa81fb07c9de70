"""A request's body and the reply's, in the form of OpenAI's chat completions, streamed or not. Pure."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import ChatMessages
from vcppo.common.text.yaml_text import one_line
from vcppo.generator.endpoint.chat_messages import read_messages, read_tools
from vcppo.generator.endpoint.conversation import Tools
from vcppo.generator.endpoint.refusal import invalid

MODEL = "policy"
"""The one name there is. A request may ask for any."""
_FIXED: dict[str, tuple[object, ...]] = {
    "n": (1,), "logprobs": (False,), "top_logprobs": (0,), "tool_choice": ("auto",), "parallel_tool_calls": (True,),
    "response_format": ({"type": "text"},), "modalities": (["text"],),
}  # fmt: skip
"""What has one meaning here. Another value would make another reply, so it is refused."""
_SAMPLING = frozenset(
    ("temperature", "top_p", "top_k", "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty")
)
_OF_NO_MEANING = frozenset(("model", "user", "metadata", "store", "service_tier", "safety_identifier"))
_KNOWN = {"messages", "tools", "max_tokens", "max_completion_tokens", "stream", "stream_options"}

FinishedBy = Literal["stop", "length", "tool_calls"]


class ChatRequest(NamedTuple):
    """What an agent asks.

    Attributes:
        max_tokens: of the reply; None: what room there is.
        ignored: settings of sampling that it has and that do not count.
        with_usage: a stream ends with a chunk that counts tokens.
    """

    messages: ChatMessages
    tools: Tools
    max_tokens: int | None
    stream: bool
    with_usage: bool
    ignored: frozenset[str]


class Reply(NamedTuple):
    """What the policy has said.

    Attributes:
        message: in the form of `read_messages`.
        num_before, num_tokens: tokens before it, and its own.
    """

    message: dict[str, Any]
    finish_reason: FinishedBy
    num_before: int
    num_tokens: int


def read_request(body: bytes) -> ChatRequest:
    """Raises Refusal, naming the field."""
    found = _object(body)
    for name, accepted in _FIXED.items():
        if found.get(name) is not None and found[name] not in accepted:
            shown = json.dumps(found[name])[:80]
            raise invalid(f"{name}: {shown} is not supported, only {json.dumps(accepted[0])}")
    known = _KNOWN | _FIXED.keys() | _SAMPLING | _OF_NO_MEANING
    if unknown := sorted(name for name, value in found.items() if value is not None and name not in known):
        raise invalid(f"{one_line(unknown[0], 80)}: not supported")
    options = found.get("stream_options") or {}
    if not isinstance(options, dict):
        raise invalid("stream_options: an object")
    return ChatRequest(
        read_messages(found.get("messages")),
        read_tools(found.get("tools")),
        _max_tokens(found),
        _flag(found, "stream"),
        _flag(options, "include_usage"),
        frozenset(name for name in _SAMPLING if found.get(name) is not None),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = parse_json(body)
        json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is in no tokenizer
    except (JsonError, UnicodeEncodeError, RecursionError) as error:
        raise invalid(f"body: no JSON of text that can be read ({error})") from error
    if not isinstance(found, dict):
        raise invalid("body: a JSON object")
    return found


def _flag(found: dict[str, Any], name: str) -> bool:
    value = found.get(name)
    if value is not None and type(value) is not bool:
        raise invalid(f"{name}: true or false")
    return bool(value)


def _max_tokens(found: dict[str, Any]) -> int | None:
    given = [found[name] for name in ("max_tokens", "max_completion_tokens") if found.get(name) is not None]
    if not all(type(value) is int and value >= 1 for value in given):
        raise invalid("max_tokens: a whole number of at least 1")
    return min(given, default=None)


def completion(name: str, reply: Reply, created: int) -> dict[str, Any]:
    """The body of a reply that is not streamed."""
    choice = {"index": 0, "message": _shown(reply), "finish_reason": reply.finish_reason, "logprobs": None}
    head = {"id": name, "object": "chat.completion", "created": created, "model": MODEL}
    return {**head, "choices": [choice], "usage": _usage(reply)}


class Chunks:
    """A streamed reply as events: pieces of its text, then how it ended.

    Args:
        name, created: of the completion.
    """

    def __init__(self, name: str, created: int, *, with_usage: bool) -> None:
        self._head = {"id": name, "object": "chat.completion.chunk", "created": created, "model": MODEL}
        self._with_usage, self._said = with_usage, ""

    def piece(self, text: str) -> bytes:
        """Some of its text."""
        role = {} if self._said else {"role": "assistant"}
        self._said += text
        return self._delta({**role, "content": text})

    def end(self, reply: Reply) -> bytes:
        """What has not been said of the reply, and the end; an error where something else was said."""
        message = reply.message
        calls = [{"index": place, **call} for place, call in enumerate(message.get("tool_calls", []))]
        found = b""
        if not self._said:
            found = self._delta({**_shown(reply), **({"tool_calls": calls} if calls else {})})
        elif not message["content"].startswith(self._said):
            return self.broken("failed", "the text of the turn is not what was streamed of it: ask again")
        elif rest := message["content"][len(self._said) :]:
            found = self.piece(rest)
        found += self._delta({}, reply.finish_reason)
        if self._with_usage:
            found += _event({**self._head, "choices": [], "usage": _usage(reply)})
        return found + b"data: [DONE]\n\n"

    def broken(self, code: str, text: str) -> bytes:
        """Said in place of the rest."""
        return _event({"error": {"message": text, "type": "server_error", "param": None, "code": code}})

    def _delta(self, delta: dict[str, Any], ended: FinishedBy | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": ended, "logprobs": None}
        return _event({**self._head, "choices": [choice]})


def _shown(reply: Reply) -> dict[str, Any]:
    message = reply.message
    return {**message, "content": None} if message.get("tool_calls") and not message["content"] else message


def _usage(reply: Reply) -> dict[str, int]:
    total = reply.num_before + reply.num_tokens
    return {"prompt_tokens": reply.num_before, "completion_tokens": reply.num_tokens, "total_tokens": total}


def _event(value: object) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"

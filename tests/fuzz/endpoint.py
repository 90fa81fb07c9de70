"""What the endpoint for agents reads: bodies, keys, and calls of tools in a policy's text. The first byte says which.

What is accepted means the same when it is read again; a refusal names the part.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any

from tests.fuzz.rig.harness import ACCEPTED, Harness, reason_of
from tests.fuzz.rig.mutate import mutate_bytes
from vcppo.generator.endpoint.chat_form import Chunks, Reply, completion, read_request
from vcppo.generator.endpoint.chat_messages import assistant_message, for_template, read_messages
from vcppo.generator.endpoint.refusal import Refusal
from vcppo.generator.endpoint.session_keys import SessionKeys
from vcppo.generator.endpoint.tool_calls import read_tool_calls

_KEYS = SessionKeys()
_OPEN = 7


def one(data: bytes) -> str:
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"k":
            return _key(rest)
        return _text(rest) if kind == b"t" else _body(rest)
    except Refusal as refusal:
        return reason_of(refusal, None if kind == b"k" else _PARTS)


def _body(data: bytes) -> str:
    found = read_request(data)
    again = read_request(json.dumps({"messages": found.messages, "tools": found.tools}).encode())
    assert (again.messages, again.tools) == (found.messages, found.tools)
    for_template(found.messages)
    return ACCEPTED


def _key(data: bytes) -> str:
    header = data.decode("utf-8", "surrogateescape")
    assert _KEYS.number(header) == _OPEN
    scheme, key = header.split()
    assert (scheme.lower(), key) == ("bearer", _KEYS.make(_OPEN))
    return ACCEPTED


def _text(data: bytes) -> str:
    text = data.decode("utf-8", "replace")
    said, calls = read_tool_calls(text, 3)
    assert text.startswith(said) and (calls or said == text)
    message = assistant_message(said, calls)
    shown: Any = completion("x", Reply(message, "stop", 1, 1), 0)["choices"][0]["message"]
    asked = {"role": "user", "content": "x"}
    assert read_messages([asked, json.loads(json.dumps(shown)), asked]) == [asked, message, asked]
    chunks = Chunks("x", 0, with_usage=True)
    pieces = [chunks.piece(said[: len(said) // 2])] if not calls else []
    assert (b"".join(pieces) + chunks.end(Reply(message, "stop", 1, 1))).endswith(b"data: [DONE]\n\n")
    return ACCEPTED if calls else "no call"


_CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"x": [1, 2.5, null]}'}}
_BODY: dict[str, Any] = {
    "model": "m", "messages": [
        {"role": "system", "content": "be"}, {"role": "user", "content": [{"type": "text", "text": "do"}]},
        {"role": "assistant", "content": None, "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
    ],
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    "max_tokens": 5, "temperature": 0.5, "stream": True, "stream_options": {"include_usage": True}, "n": 1,
}  # fmt: skip
_PARTS = frozenset({*_BODY, "body"})
_VALUES = (None, 0, 1, -1, True, 2.5, float("nan"), "", "x", "auto", "\ud800", "\x1b[2J", [], {}, [{}], ["x"], [None])
_TEXTS = (
    "<tool_call>", "</tool_call>", '{"name": "f", "arguments": {"x": 1}}', '{"name": "f", "parameters": {}}',
    "[" * 5000, '"\\ud800"', "NaN", "say", "\n", "1" * 5000, "{", "}",
)  # fmt: skip


def seeds() -> list[bytes]:
    header = f"Bearer {_KEYS.make(_OPEN)}".encode()
    return [b"b" + json.dumps(_BODY).encode(), b"k" + header, b"t" + "".join(_TEXTS[:3:2]).encode()]


def draw(rng: Random) -> bytes:
    body, key, _ = seeds()
    kind = rng.choice("bbbkt")
    if kind == "t":
        return b"t" + "".join(rng.choice(_TEXTS) for _ in range(rng.randrange(7))).encode()
    if kind == "k":
        return key if rng.random() < 0.2 else mutate_bytes(rng, key)
    if rng.random() < 0.3:
        return b"b" + mutate_bytes(rng, body[1:])
    return b"b" + json.dumps(_changed(rng, _BODY)).encode()


def _changed(rng: Random, value: Any) -> Any:
    """Some of it replaced, left out, or under another name."""
    if rng.random() < 0.02:
        return rng.choice(_VALUES)
    if isinstance(value, dict):
        kept = {
            (name if rng.random() > 0.02 else rng.choice(["x", "\x1b", "name"])): _changed(rng, each)
            for name, each in value.items()
            if rng.random() > 0.02
        }
        return kept
    return [_changed(rng, each) for each in value] if isinstance(value, list) else value


HARNESS = Harness("endpoint", one, draw, seeds)

"""Calls of tools in the policy's text, as a reply has them. The forms: `vcppo.common.tools.call_formats`."""

from __future__ import annotations

import json
from typing import Any

from vcppo.common.tools.call_formats import Call, calls_in

_HERMES = "<tool_call>"
_MOST = 64


def read_tool_calls(text: str, number: int) -> tuple[str, list[dict[str, Any]]]:
    """(the text before the calls, the calls). A text with a call that can't be read is a text without calls.

    Args:
        number: of the turn: it makes the ids of calls differ within a session.
    """
    is_hermes = _HERMES in text
    found = calls_in(text, "hermes" if is_hermes else "llama", _MOST)
    calls = [each for each in found if isinstance(each, Call)]
    if not calls or len(calls) < len(found):
        return text, []
    said = text[: text.find(_HERMES)] if is_hermes else ""
    return said, [_shown(call, f"call_{number}_{place}") for place, call in enumerate(calls)]


def _shown(call: Call, name: str) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    return {"id": name, "type": "function", "function": {"name": call.name, "arguments": arguments}}

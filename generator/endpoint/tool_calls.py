"""Calls of tools in the policy's text, as Hermes and Qwen write them:

<tool_call>{"name": "search", "arguments": {"for": "words"}}</tool_call>
"""

from __future__ import annotations

import json
import re
from typing import Any

from vcppo.common.files.json_file import JsonError, parse_json

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def read_tool_calls(text: str, number: int) -> tuple[str, list[dict[str, Any]]]:
    """(the text before the calls, the calls). A text with a call that can't be read is a text without calls.

    Args:
        number: of the turn: it makes the ids of calls differ within a session.
    """
    calls = []
    for place, found in enumerate(_CALL.findall(text)):
        try:
            call = parse_json(found)
            arguments = json.dumps(call.get("arguments", {}), ensure_ascii=False)
        except (JsonError, AttributeError, RecursionError):
            return text, []
        if not isinstance(call.get("name"), str):
            return text, []
        function = {"name": call["name"], "arguments": arguments}
        calls.append({"id": f"call_{number}_{place}", "type": "function", "function": function})
    return (text[: text.find("<tool_call>")], calls) if calls else (text, [])

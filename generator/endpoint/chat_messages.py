"""Messages and tools as a request brings them, in one form: what means the same compares equal.

A message has a role and a content of text, an assistant's may have calls of tools, and a tool's says which call it
answers. What clients add as ``null`` (refusal, audio, annotations) is left out. Pictures and sound are refused.
"""

from __future__ import annotations

import json
from typing import Any

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import ChatMessages
from vcppo.common.text.yaml_text import one_line
from vcppo.generator.endpoint.refusal import invalid

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXTS = ("name", "tool_call_id")


def read_messages(found: Any) -> ChatMessages:
    """Raises Refusal, naming the message."""
    if not isinstance(found, list) or not found:
        raise invalid("messages: a list of at least one message")
    messages = [_message(f"messages[{number}]", each) for number, each in enumerate(found)]
    _name_tools(messages)
    if messages[-1]["role"] == "assistant":
        raise invalid(
            f"messages[{len(messages) - 1}]: the last one is the assistant's: the policy has nothing to answer"
        )
    return messages


def read_tools(found: Any) -> list[dict[str, Any]] | None:
    """None where there are none. Raises Refusal, naming the tool."""
    if found is None or found == []:
        return None
    if not isinstance(found, list):
        raise invalid("tools: a list")
    for number, each in enumerate(found):
        function = each.get("function") if isinstance(each, dict) and each.get("type") == "function" else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise invalid(f"tools[{number}]: a function with a name is accepted, and nothing else")
    return found


def assistant_message(content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    """What the policy has said, in the form of `read_messages`."""
    return _message("reply", {"role": "assistant", "content": content, "tool_calls": calls})


def for_template(messages: ChatMessages) -> ChatMessages:
    """As chat templates want them: the arguments of a call as what their JSON says."""
    return [_for_template(each) for each in messages]


def _name_tools(messages: ChatMessages) -> None:
    """What a tool says gets the tool's name, which some chat templates want and most clients leave out."""
    names: dict[str, str] = {}
    for each in messages:
        names |= {call["id"]: call["function"]["name"] for call in each.get("tool_calls", [])}
        if each["role"] == "tool" and each.get("tool_call_id") in names:
            each.setdefault("name", names[each["tool_call_id"]])


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    if "tool_calls" not in message:
        return message
    calls = [
        {**call, "function": {**call["function"], "arguments": _parsed(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _message(where: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, dict) or found.get("role") not in _ROLES:
        raise invalid(f"{where}: a message with a role among {', '.join(_ROLES)}")
    given = {name: value for name, value in found.items() if value is not None and value != []}
    message: dict[str, Any] = {"role": given.pop("role"), "content": _text(where, given.pop("content", ""))}
    for name in _TEXTS:
        if name in given:
            message[name] = given.pop(name)
            if not isinstance(message[name], str):
                raise invalid(f"{where}.{name}: a text")
    if "tool_calls" in given and message["role"] == "assistant":
        message["tool_calls"] = _calls(where, given.pop("tool_calls"))
    if given:
        raise invalid(f"{where}.{one_line(min(given), 80)}: not supported in a message of role {message['role']}")
    return message


def _text(where: str, content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str) for part in content
    ):
        return "".join(part["text"] for part in content)
    raise invalid(f"{where}.content: text, or parts of type text")


def _calls(where: str, found: Any) -> list[dict[str, Any]]:
    return [_call(f"{where}.tool_calls", each) for each in (found if isinstance(found, list) else [None])]


def _call(where: str, found: Any) -> dict[str, Any]:
    function = found.get("function") if isinstance(found, dict) and found.get("type") == "function" else None
    if isinstance(function, dict):
        number, name, arguments = found.get("id"), function.get("name"), function.get("arguments")
        if isinstance(number, str) and isinstance(name, str) and isinstance(arguments, str):
            return {"id": number, "type": "function", "function": {"name": name, "arguments": _spelled(arguments)}}
    raise invalid(f"{where}: calls with an id, a name and arguments as text")


def _spelled(arguments: str) -> str:
    """The same arguments in another spelling are the same call."""
    try:
        return json.dumps(_parsed(arguments), ensure_ascii=False)
    except RecursionError:
        raise invalid("tool_calls: arguments that are nested too deep") from None


def _parsed(arguments: str) -> Any:
    try:
        return parse_json(arguments)
    except JsonError:
        return arguments

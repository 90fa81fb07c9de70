"""A column of chat messages, as chat data sets have it: several turns, a system prompt, tool calls.

    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2 + 3?"}]

The policy answers what is asked last, so the last turn is a user's or a tool's. What can't be asked is refused by the
row's place.
"""

from __future__ import annotations

from typing import Any

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import ChatMessages, TaskError
from vcppo.common.tasks.prompts.columns import checked_text, list_of
from vcppo.common.tasks.rows import Row
from vcppo.common.text.yaml_text import one_line

_ROLES = ("system", "developer", "user", "assistant", "tool")
_INSTRUCTING = ("system", "developer")


def messages_of(row: Row, column: str) -> ChatMessages:
    """The row's chat, ready to be asked: every content is text, every tool call has its arguments as an object.

    Raises:
        TaskError: no chat, or one that asks nothing.
    """
    found = list_of(row, column, "messages_column")
    where = f"{row.place}: {column!r}"
    if not found:
        raise TaskError(f"{where} has no message: give a user's turn or drop the row")
    messages = [_message(each, f"{where}: message {number}") for number, each in enumerate(found, 1)]
    last = messages[-1]
    if last["role"] == "assistant":
        raise TaskError(f"{where} ends with the assistant's turn, so nothing is asked: take that turn out of the row")
    if last["role"] in _INSTRUCTING:
        raise TaskError(
            f"{where} ends with a {last['role']}'s message, so nothing is asked: put it before the question"
        )
    if not any(message["role"] == "user" for message in messages):
        raise TaskError(f"{where} has no user's turn: give one or drop the row")
    if not last["content"].strip():
        raise TaskError(f"{where}: the last message is empty: give the question or drop the row")
    return messages


def with_system_prompt(messages: ChatMessages, system_prompt: str, where: str) -> ChatMessages:
    """The chat with the option's system message in front.

    Raises:
        TaskError: it has one of its own.
    """
    if any(message["role"] in _INSTRUCTING for message in messages):
        raise TaskError(
            f"{where} has a system message of its own: take it out, or leave task.options.system_prompt out"
        )
    return [{"role": "system", "content": system_prompt}, *messages]


def with_instruction(messages: ChatMessages, instruction: str) -> ChatMessages:
    """The chat with the instruction behind the user's last turn."""
    last = max(number for number, message in enumerate(messages) if message["role"] == "user")
    changed = {**messages[last], "content": f"{messages[last]['content']}\n\n{instruction}".rstrip()}
    return [*messages[:last], changed, *messages[last + 1 :]]


def question_in(messages: ChatMessages) -> str:
    """What is asked, for telling questions apart: all turns, without the instructions that stand before them."""
    return "\n\n".join(each["content"] for each in messages if each["role"] not in _INSTRUCTING and each["content"])


def instructions_in(messages: ChatMessages) -> list[str]:
    """The system messages."""
    return [each["content"] for each in messages if each["role"] in _INSTRUCTING]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, dict):
        raise TaskError(f"{where} is {type(message).__name__}, not an object with role and content")
    message = {name: value for name, value in message.items() if value is not None}
    role = message.get("role")
    if role not in _ROLES:
        found = f"role {one_line(repr(role), 40)}" if "role" in message else f"no role (there are: {_names(message)})"
        raise TaskError(f"{where} has {found}: it must be one of {', '.join(_ROLES)}")
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise TaskError(f"{where} has tool_calls in a turn of role {role!r}: only the assistant calls tools")
    if "content" not in message and not calls:
        raise TaskError(f"{where} has no content (there are: {_names(message)}): give its text")
    made = {**message, "content": checked_text(_content(message.get("content"), where), where)}
    made.pop("tool_calls", None)
    if calls:
        made["tool_calls"] = [_call(call, where) for call in (calls if isinstance(calls, list) else [calls])]
    return made


def _content(content: Any, where: str) -> str:
    """Text, or a list of parts that are text: they are joined."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise TaskError(f"{where} has a content that is {type(content).__name__}, not text or a list of parts")
    return "".join(_part(part, where) for part in content)


def _part(part: Any, where: str) -> str:
    text = part.get("text") if isinstance(part, dict) else part
    kind = part.get("type", "text") if isinstance(part, dict) else "text"
    if kind != "text" or not isinstance(text, str):
        shown = f"type {one_line(repr(kind), 40)}" if isinstance(part, dict) else type(part).__name__
        raise TaskError(f"{where} has a part of {shown}: only text can be asked: drop the part or the row")
    return text


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call with its arguments as an object: chat templates write them as JSON."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise TaskError(f"{where} has a tool call without a function's name: mend the row")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = parse_json(arguments or "{}")
        except JsonError as error:
            raise TaskError(
                f"{where} calls {function['name']!r} with arguments that are {error}: mend the row"
            ) from error
    if not isinstance(arguments, dict):
        kind = type(arguments).__name__
        raise TaskError(f"{where} calls {function['name']!r} with arguments that are {kind}, not an object")
    changed = {**function, "arguments": arguments}
    return {**call, "function": changed} if "function" in call else {"type": "function", "function": changed}


def _names(message: dict[str, Any]) -> str:
    return one_line(", ".join(map(str, message)) or "none", 80)

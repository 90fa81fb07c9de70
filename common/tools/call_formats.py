r"""The tool calls in a turn's text, in the two forms that most models write. Pure: no text makes it raise.

hermes (Qwen, Hermes and others)     <tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>, any number
llama (Llama 3.1 and later)          {"name": "add", "parameters": {"a": 1}}, alone in its turn; more behind a ;

As in vLLM, the last call of a turn need not be closed, and Llama's may begin with <|python_tag|>. vLLM's own parsers
need its tokenizers and requests, so they can't be used in an environment's child.
"""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.text.yaml_text import one_line

CallFormat = Literal["hermes", "llama"]
MAX_CALL = 1 << 15
"""Characters of one call."""
_OPEN, _CLOSE, _PYTHON = "<tool_call>", "</tool_call>", "<|python_tag|>"


class Call(NamedTuple):
    """A call that can be read. Its arguments can be written as JSON and as UTF-8."""

    name: str
    arguments: dict[str, Any]


class BadCall(NamedTuple):
    """What was meant as a call, and why it is none."""

    fault: str


def calls_in(text: str, form: CallFormat, most: int) -> list[Call | BadCall]:
    """All calls of a turn in their order; empty: the turn is an answer.

    Args:
        most: calls of one turn. What comes behind them is one `BadCall`.
    """
    found = _hermes(text, most) if form == "hermes" else _llama(text, most)
    if len(found) > most:
        found[most:] = [BadCall(f"more than {most} calls in one turn: the rest was not run")]
    return found


def _hermes(text: str, most: int) -> list[Call | BadCall]:
    found: list[Call | BadCall] = []
    place = text.find(_OPEN)
    while place >= 0 and len(found) <= most:
        begin = place + len(_OPEN)
        end = text.find(_CLOSE, begin)
        found.append(_call(text[begin : end if end >= 0 else len(text)], ("arguments",)))
        place = text.find(_OPEN, end) if end >= 0 else -1
    return found


def _llama(text: str, most: int) -> list[Call | BadCall]:
    text = text.strip()
    is_marked = text.startswith(_PYTHON)
    rest = text.removeprefix(_PYTHON).strip()
    if not is_marked and not rest.startswith("{"):
        return []
    found: list[Call | BadCall] = []
    while rest and len(found) <= most:
        end = _end_of_object(rest)
        found.append(_call(rest[:end], ("parameters", "arguments")))
        rest = rest[end:].lstrip().removeprefix(";").lstrip()
    if not is_marked and not any(isinstance(each, Call) for each in found) and '"name"' not in text:
        return []  # an answer that is JSON
    return found


def _end_of_object(text: str) -> int:
    """Where the first JSON value ends; all of the text when there is none."""
    try:
        return json.JSONDecoder().raw_decode(text[: MAX_CALL + 1])[1]
    except (ValueError, RecursionError):
        return len(text)


def _call(text: str, keys: tuple[str, ...]) -> Call | BadCall:
    if len(text) > MAX_CALL:
        return BadCall(f"a call of {len(text):,} characters: at most {MAX_CALL:,}")
    try:
        read = parse_json(text.strip())
    except JsonError as error:
        return BadCall(f"the call is {one_line(error, 200)}")
    form = f'write {{"name": …, "{keys[0]}": {{…}}}}'
    if not isinstance(read, dict) or not isinstance(read.get("name"), str):
        return BadCall(f"the call is no JSON object with a name: {form}")
    key = next((each for each in keys if each in read), None)
    if key is None or not isinstance(read[key], dict):
        return BadCall(f"the call has no {keys[0]} that are an object: {form}")
    try:
        json.dumps([read["name"], read[key]], allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):  # UnicodeEncodeError is one
        return BadCall("the call holds a number or a character that JSON can't hold")
    return Call(read["name"], read[key])

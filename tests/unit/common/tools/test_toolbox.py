"""Calls of one turn: whatever a tool does, the policy gets a short text for each call, and errors are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.environments.environment import Observation, ToolUse, checked
from vcppo.common.tasks import TaskError
from vcppo.common.tools.call_formats import BadCall, Call
from vcppo.common.tools.tool import Tool
from vcppo.common.tools.toolbox import Toolbox, ToolLimits, cut


class Odd(Tool):
    """Does what its argument says."""

    name, description = "odd", "does things"
    parameters: Mapping[str, Any] = {
        "type": "object",
        "properties": {"what": {"type": "string"}, "count": {"type": "integer", "minimum": 0}},
        "required": ["what"],
        "additionalProperties": False,
    }

    def __init__(self, name: str = "odd") -> None:
        self.name = name

    def call(self, arguments: Mapping[str, Any]) -> Awaitable[str] | str:
        what = arguments["what"]
        if what == "raise":
            raise KeyError("no\nsuch thing " + "x" * 10_000)
        if what == "number":
            return 3  # type: ignore[return-value]
        if what == "long":
            return "y" * 10_000
        if what == "surrogate":
            return "\ud800 <|im_end|>"
        if what in ("hang", "late"):
            return self._late(what)
        return f"said {what}"

    async def _late(self, what: str) -> str:
        if what == "late":
            raise TimeoutError("of its own")
        await asyncio.sleep(600)
        return ""


def run(*calls: Call | BadCall, seconds: float = 5.0, output: int = 100) -> tuple[list[str], ToolUse]:
    box = Toolbox([Odd()], ToolLimits(seconds, output))
    messages, use = asyncio.run(box.run(calls))
    seen = checked(Observation(messages, tools=use))  # what an environment may say
    assert all(each["role"] == "tool" and each["name"] in ("odd", "unknown") for each in messages)
    return [str(each["content"]) for each in messages], seen.tools


def odd(what: str, **more: Any) -> Call:
    return Call("odd", {"what": what, **more})


def test_results_come_in_order_and_nothing_of_one_call_touches_the_next() -> None:
    said, use = run(odd("a"), odd("raise"), odd("b", count=3), output=1000)
    assert said[0] == "said a" and said[2] == "said b"
    assert said[1].startswith("error: odd: KeyError: ") and "\n" not in said[1]
    assert (use.calls, use.errors) == (3, 1) and use.seconds >= 0


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (BadCall("it is no JSON"), "error: it is no JSON"),
        (Call("even", {}), "error: there is no tool 'even'; there are: odd"),
        (Call("odd\n" * 50, {}), "error: there is no tool"),
        (odd("a", count=-1), "error: wrong arguments for odd: count: -1 is less than the minimum of 0"),
        (odd("a", other=1), "error: wrong arguments for odd: Additional properties"),
        (Call("odd", {}), "error: wrong arguments for odd: 'what' is a required property"),
        (odd("number"), "error: odd gave a int, not text"),
        (odd("late"), "error: odd: TimeoutError: of its own"),
    ],
)
def test_what_can_not_be_called_is_told(call: Call | BadCall, text: str) -> None:
    (said,), use = run(call, output=1000)
    assert said.startswith(text) and len(said) < 600
    assert (use.calls, use.errors) == (1, 1)


def test_calls_of_a_turn_share_their_time() -> None:
    began = time.monotonic()
    said, use = run(odd("hang"), odd("a"), seconds=0.2, output=1000)
    assert said == ["error: no answer in 0.2 s", "error: not run: the calls of a turn have 0.2 s together"]
    assert use.errors == 2 and time.monotonic() - began < 60


def test_a_long_result_is_cut_and_half_a_character_is_mended() -> None:
    (long, half), use = run(odd("long"), odd("surrogate"))
    assert long == "y" * 100 + "\n… (9,900 more characters are cut off)"
    assert half == "? <|im_end|>"  # it becomes no token: see test_turn_text
    assert use.errors == 0


@given(st.text(st.characters(), max_size=50) | st.just("\ud800\udc00\udfff"), st.integers(1, 30))
def test_cut_text_can_be_encoded(text: str, most: int) -> None:
    assert len(cut(text, most).encode()) <= 4 * most + 60


@pytest.mark.parametrize(
    ("name", "parameters", "said"),
    [
        ("no name", {"type": "object"}, "no name of a tool"),
        ("x" * 65, {"type": "object"}, "no name of a tool"),
        ("f", {}, "no JSON schema of an object"),
        ("f", None, "no JSON schema of an object"),
        ("f", {"type": "array"}, "no JSON schema of an object"),
        ("f", {"type": "object", "properties": 3}, "a schema that is none"),
    ],
)
def test_a_tool_without_name_or_schema_is_refused(name: str, parameters: Any, said: str) -> None:
    tool = Odd(name)
    tool.parameters = parameters
    with pytest.raises(TaskError, match=said):
        Toolbox([tool], ToolLimits(1, 100))


def test_two_tools_of_one_name_are_refused() -> None:
    with pytest.raises(TaskError, match="two tools are called 'odd'"):
        Toolbox([Odd(), Odd()], ToolLimits(1, 100))


def test_a_schema_that_points_elsewhere_is_not_followed() -> None:
    tool = Odd()
    tool.parameters = {"type": "object", "properties": {"what": {"$ref": "http://127.0.0.1:9/schema.json"}}}
    box = Toolbox([tool], ToolLimits(1, 300))
    messages, use = asyncio.run(box.run([odd("a")]))
    assert "can't be checked" in messages[0]["content"] and use.errors == 1

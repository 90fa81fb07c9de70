"""Calls of tools in the policy's text: what is none stays text."""

from __future__ import annotations

import pytest

from vcppo.generator.endpoint.chat_messages import assistant_message, for_template
from vcppo.generator.endpoint.tool_calls import read_tool_calls


def test_calls_are_read_in_their_order() -> None:
    text = 'I ask.<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
    text += '<tool_call>{"name": "g", "arguments": {}}</tool_call>'
    said, calls = read_tool_calls(text, 4)
    assert said == "I ask."
    assert [(each["id"], each["function"]) for each in calls] == [
        ("call_4_0", {"name": "f", "arguments": '{"x": 1}'}),
        ("call_4_1", {"name": "g", "arguments": "{}"}),
    ]
    (message,) = for_template([assistant_message(said, calls)])
    assert [each["function"]["arguments"] for each in message["tool_calls"]] == [{"x": 1}, {}]


def test_a_call_that_only_lacks_its_end_is_one() -> None:
    text = '<tool_call>{"name": "f", "arguments": {}}'
    assert [each["function"]["name"] for each in read_tool_calls(text, 0)[1]] == ["f"]


def test_calls_of_llama_are_read() -> None:
    said, calls = read_tool_calls('<|python_tag|>{"name": "f", "parameters": {"x": 1}}', 2)
    assert said == "" and calls[0]["function"] == {"name": "f", "arguments": '{"x": 1}'}


@pytest.mark.parametrize(
    "text",
    ["no call", "<tool_call>f(1)</tool_call>", "<tool_call>[1]</tool_call>", '<tool_call>{"name": 1}</tool_call>',
     "<tool_call></tool_call>", "<tool_call>" + '{"name": "f", "arguments": ' + "[" * 5000 + "</tool_call>",
     '<tool_call>{"name": "f"}</tool_call><tool_call>{</tool_call>', "</tool_call>",
     '<tool_call>{"name": "f"}</tool_call>', '{"answer": 1}'],
)  # fmt: skip
def test_what_is_no_call_stays_text(text: str) -> None:
    assert read_tool_calls(text, 0) == (text, [])

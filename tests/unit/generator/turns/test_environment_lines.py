"""The lines of an environment child: what comes through whole, and what is refused whatever it holds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.environments.environment import Observation, ToolUse
from vcppo.generator.turns.environment_lines import Answer, Ready, answer_line, parse_answer, parse_ready, ready_line

SOUND: dict[str, Any] = {
    "number": 1, "content": "x", "reward": 0.0, "done": False, "outcome": None, "tools": [0, 0, 0.0], "fault": None,
    "detail": None, "is_lost": False,
}  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def test_an_answer_and_a_first_reply_come_back() -> None:
    said = [{"role": "tool", "content": "42", "name": "add"}]
    answer = Answer(Observation(said, 0.5, True, "correct", ToolUse(3, 1, 0.25)))
    assert parse_answer(answer_line(7, answer).encode()) == (7, answer)
    ready = Ready(True, True, {"tools": [{"function": {"name": "add"}}], "enable_thinking": False})
    assert parse_ready(ready_line(ready).encode()) == ready


@given(st.sampled_from(sorted(SOUND)), JSON)
def test_whatever_a_child_says_is_an_answer_or_a_value_error(field: str, value: Any) -> None:
    line = json.dumps({**SOUND, field: value}).encode()
    try:
        number, answer = parse_answer(line)
    except ValueError:
        return
    assert type(number) is int and 0 <= answer.observation.tools.errors <= answer.observation.tools.calls


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("tools", [1, 2, 0], "no more errors than calls"),
        ("tools", [1, 0, -1], "counts"),
        ("tools", [0.5, 0, 0], "counts"),
        ("tools", [1], "no ToolUse"),
        ("tools", None, "no ToolUse"),
        ("tools", ["a", 0, 0], "a str where a number should be"),
        ("content", [{"role": "tool", "content": "x", "name": 3}], "more than role, content and name as text"),
        ("content", "\ud800", "half a character"),
        ("is_lost", None, "is_lost should be"),
    ],
)
def test_what_is_no_answer_is_named(field: str, value: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_answer(json.dumps({**SOUND, field: value}).encode())


@pytest.mark.parametrize(
    "reply",
    [{}, {"number": 0, "is_async": 1, "is_chat": True, "template": {}}, {**SOUND}, {"number": 0, "is_async": True}],
)
def test_what_is_no_first_reply_is_refused(reply: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no reply|no first reply"):
        parse_ready(json.dumps(reply).encode())

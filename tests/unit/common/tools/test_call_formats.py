"""Calls in a turn's text: both forms are read, what is none is told, and no text makes the reader raise."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.tools.call_formats import MAX_CALL, BadCall, Call, CallFormat, calls_in

FORMS: tuple[CallFormat, ...] = ("hermes", "llama")
ADD = '{"name": "add", "arguments": {"a": 1, "b": "x"}}'
PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "<|python_tag|>", ADD, "{", "}", '"name"', '"arguments"', ": ", "[" * 50, ";", "\n"]
)
TEXTS = st.lists(st.one_of(PIECES, st.text(max_size=5)), max_size=12).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(TEXTS, st.sampled_from(FORMS), st.integers(1, 4))
def test_whatever_the_text_nothing_is_raised_and_the_bounds_hold(text: str, form: CallFormat, most: int) -> None:
    found = calls_in(text, form, most)
    assert len(found) <= most + 1
    for each in found[:most]:
        if isinstance(each, Call):
            assert len(json.dumps(each.arguments, ensure_ascii=False).encode()) <= 8 * MAX_CALL
        else:
            assert 0 < len(each.fault) < 500
    if len(found) > most:
        assert isinstance(found[most], BadCall)


@given(st.text(min_size=1, max_size=8), st.dictionaries(st.text(max_size=4), VALUES, max_size=3))
def test_what_a_model_writes_is_what_is_read(name: str, arguments: dict[str, Any]) -> None:
    wanted = [Call(name, arguments)]
    hermes = json.dumps({"name": name, "arguments": arguments})
    assert calls_in(f"Let me see.\n<tool_call>\n{hermes}\n</tool_call>", "hermes", 4) == wanted
    llama = json.dumps({"name": name, "parameters": arguments})
    assert calls_in(llama, "llama", 4) == wanted
    assert calls_in(f"<|python_tag|>{llama}; {llama}", "llama", 4) == wanted * 2


@pytest.mark.parametrize("text", ["", "42", "The answer is {42}.", 'I would say "name".'])
@pytest.mark.parametrize("form", FORMS)
def test_a_turn_without_a_call_is_an_answer(text: str, form: CallFormat) -> None:
    assert calls_in(text, form, 4) == []


def test_an_answer_that_is_json_is_no_call() -> None:
    assert calls_in('{"answer": 42}', "llama", 4) == []
    assert calls_in(ADD, "hermes", 4) == []


def test_the_last_call_need_not_be_closed() -> None:
    call = Call("add", {"a": 1, "b": "x"})
    assert calls_in(f"<tool_call>{ADD}</tool_call> and <tool_call>{ADD}", "hermes", 4) == [call, call]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("", "not JSON"),
        ("add(1, 2)", "not JSON"),
        ('{"name": "add", "arguments": {"a": 1}', "not JSON"),
        ("[" * 5000, "nested too deeply"),
        ('["add"]', "no JSON object with a name"),
        ('{"name": 3, "arguments": {}}', "no JSON object with a name"),
        ('{"name": "add"}', "no arguments that are an object"),
        ('{"name": "add", "arguments": "{}"}', "no arguments that are an object"),
        ('{"name": "add", "arguments": {"a": NaN}}', "that JSON can't hold"),
        ('{"name": "add", "arguments": {"a": "\\ud800"}}', "that JSON can't hold"),
        (f'{{"name": "add", "arguments": {{"a": "{"x" * MAX_CALL}"}}}}', "characters: at most"),
        (f'{{"name": "add", "arguments": {{"a": {"9" * 10_000}}}}}', "not JSON that can be read"),
    ],
)
def test_what_is_meant_as_a_call_and_is_none_is_told(body: str, said: str) -> None:
    (found,) = calls_in(f"<tool_call>{body}</tool_call>", "hermes", 4)
    assert isinstance(found, BadCall) and said in found.fault
    (found,) = calls_in(f"<|python_tag|>{body or '}'}", "llama", 1)[:1]
    assert isinstance(found, BadCall)


def test_only_so_many_calls_of_a_turn_are_run() -> None:
    for text, form in ((f"<tool_call>{ADD}</tool_call>" * 9, "hermes"), (";".join([ADD] * 9), "llama")):
        found = calls_in(text, form, 3)  # type: ignore[arg-type]
        assert [type(each) for each in found] == [Call, Call, Call, BadCall]
        assert "more than 3 calls" in found[-1].fault  # type: ignore[union-attr]

"""What a service and a judge are asked and say: each answer is read by itself, and what is none is said by name."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.config import JudgeConfig
from vcppo.common.tasks import Verdict
from vcppo.generator.reward_sources.items import Asked, RequestFailed, Said
from vcppo.generator.reward_sources.judge_form import chat_request, filled, grade_in, reply_in, reward_of
from vcppo.generator.reward_sources.service_form import read_answer, request_of

ASKED = Asked("a", "1 + 1 =", {"sum": 2}, " 2", "stop", 3, Verdict("correct", "2"))


def test_a_request() -> None:
    item = {"id": "a", "prompt": "1 + 1 =", "answer": {"sum": 2}, "response": " 2", "finish_reason": "stop"}
    assert request_of([ASKED]) == {"items": [item]}


def test_a_good_answer() -> None:
    body = {"items": [{"id": "b", "reward": 1}, {"id": "a", "reward": 0.5, "outcome": "wrong", "components": {"x": 2}}]}
    found = read_answer(body, ["a", "b"])
    assert found.said == {"a": Said(0.5, "wrong", {"x": 2.0}), "b": Said(1.0)} and not found.faults


@pytest.mark.parametrize(
    ("item", "because"),
    [
        ({"reward": math.nan}, "reward"),
        ({"reward": math.inf}, "reward"),
        ({"reward": 1e300}, "beyond"),
        ({"reward": "1"}, "must be numbers"),
        ({"reward": True}, "must be numbers"),
        ({"reward": None}, "reward"),
        ({}, "reward"),
        ({"reward": 1, "outcome": "crash"}, "outcome"),
        ({"reward": 1, "more": 1}, "more"),
        ({"reward": 1, "components": {"base": 1}}, "vcppo's own"),
        ({"reward": 1, "components": {"x": math.nan}}, "components.x"),
        ({"reward": 1, "components": {"x": False}}, "must be numbers"),
        ({"reward": 1, "components": [1]}, "components"),
    ],
)  # fmt: skip
def test_a_bad_answer_is_of_its_item_only(item: dict[str, Any], because: str) -> None:
    body = json.loads(json.dumps({"items": [{"id": "a"} | item, {"id": "b", "reward": 0}]}))
    found = read_answer(body, ["a", "b"])
    assert found.said.keys() == {"b"} and because in found.faults["a"]


def test_missing_twice_and_strange() -> None:
    twice = [{"id": "a", "reward": 1}, {"id": "a", "reward": 1}]
    found = read_answer({"items": [*twice, {"id": "z", "reward": 1}, 5, {"reward": 1}]}, ["a", "b"])
    assert not found.said and found.strange == 3
    assert found.faults == {"a": "it is answered twice", "b": "it is not answered"}


@pytest.mark.parametrize("body", [None, [], {}, {"items": {}}, {"items": [], "x": 1}, {"detail": "no"}])
def test_no_answer_at_all(body: Any) -> None:
    with pytest.raises(RequestFailed, match="no answer of the form") as error:
        read_answer(body, ["a"])
    assert error.value.by_items


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5) | st.just("a"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "reward", "outcome", "components", "items", "x"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.lists(JSON, max_size=5))
def test_whatever_is_answered_every_item_is_said_or_at_fault(items: list[Any]) -> None:
    found = read_answer({"items": items}, ["a", "b"])
    assert found.said.keys() | found.faults.keys() == {"a", "b"} and not found.said.keys() & found.faults.keys()
    assert all(math.isfinite(said.reward) for said in found.said.values())


def test_a_template_is_filled_once() -> None:
    template = "P {prompt} R {response} A {answer} N {answer.sum} {other} {prompt.x}"
    text = filled(template, ASKED._replace(prompt="{response}", response="{answer} {prompt}", answer={"sum": [1]}))
    assert text == 'P {response} R {answer} {prompt} A {"sum": [1]} N [1] {other} {prompt.x}'
    with pytest.raises(ValueError, match=r"no 'nr', but sum"):
        filled("{response}{answer.nr}", ASKED)


def test_who_asks_for_messages_gets_the_whole_conversation() -> None:
    plain = [{"role": "user", "content": "1 + 1 ="}, {"role": "assistant", "content": " 2"}]
    said = [*plain, {"role": "tool", "content": "{response}"}, {"role": "assistant", "content": "2"}]
    for item, messages in ((ASKED, plain), (ASKED._replace(messages=said), said)):
        assert json.loads(filled("{messages}", item)) == messages
        assert request_of([item], with_messages=True)["items"][0]["messages"] == messages
        assert "messages" not in request_of([item])["items"][0]


def judge(**settings: Any) -> JudgeConfig:
    return JudgeConfig.model_validate({"url": "http://a/v1", "model": "m", **settings})


def test_a_chat_request() -> None:
    body = chat_request(judge(temperature=0.5, max_tokens=7), "hello")
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "hello"}], "temperature": 0.5, "max_tokens": 7, "n": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "settings", "grade"),
    [
        ("8 of 10, so 0.8", {}, 0.8),
        ("I give\n1.", {}, 1.0),
        ("-.5e0", {"scale": [-1.0, 1.0]}, -0.5),
        ("Grade: 3\nGrade: 7 (10 were possible)", {"pattern": r"Grade: (\d+)", "scale": [0.0, 10.0]}, 7.0),
    ],
)
def test_the_number_in_a_reply(reply: str, settings: dict[str, Any], grade: float) -> None:
    assert grade_in(judge(**settings), reply) == grade


@pytest.mark.parametrize(
    ("reply", "settings", "because"),
    [
        ("very good", {}, "no number"),
        ("", {}, "no number"),
        ("7", {}, "beyond task.judge.scale"),
        ("so 8", {"pattern": r"Grade: (\d+)"}, "not found"),
        ("Grade: good", {"pattern": r"Grade: (\w+)"}, "'good' is no number"),
        ("Grade: nan", {"pattern": r"Grade: (\w+)"}, "is no number"),
        ("x", {"pattern": r"(\d)?x"}, "not found"),
    ],
)
def test_a_reply_without_one(reply: str, settings: dict[str, Any], because: str) -> None:
    with pytest.raises(ValueError, match=because):
        grade_in(judge(**settings), reply)


@given(st.text(max_size=200))
def test_any_reply_is_a_grade_on_the_scale_or_none(reply: str) -> None:
    with contextlib.suppress(ValueError):
        assert 0.0 <= grade_in(judge(), reply) <= 1.0


@pytest.mark.parametrize("body", [None, {}, {"choices": []}, {"choices": [{"message": {"content": None}}]}, [1], "x"])
def test_a_body_without_a_reply(body: Any) -> None:
    with pytest.raises(ValueError):
        reply_in(body)


def test_the_ends_of_the_scale_are_the_rewards() -> None:
    config = judge(scale=[1.0, 5.0])
    assert [reward_of(config, grade, -1.0, 1.0) for grade in (1.0, 3.0, 5.0)] == [-1.0, 0.0, 1.0]
    turned = judge(scale=[5.0, 1.0])  # 1 is the best
    assert [reward_of(turned, grade, -1.0, 2.0) for grade in (5.0, 1.0)] == [-1.0, 2.0]
    assert grade_in(turned, "3") == 3.0

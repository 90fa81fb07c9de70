"""Questions with tools: calls are run and told, the questions' task judges the answer, and prompts name the tools."""

from __future__ import annotations

import asyncio
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.config import TaskConfig, load_config
from vcppo.common.environments.environment import Observation, ToolUse, checked
from vcppo.common.environments.turn_text import TurnText
from vcppo.common.tasks import Chat, Problem, Task, TaskError, Verdict, encode_prompt, load_task
from vcppo.common.tools.products import Products
from vcppo.common.tools.tool_task import ToolTask

HERE = "tests.unit.common.tools.test_tool_task"
CALL = '<tool_call>{"name": "calculator", "arguments": {"expression": "6*7"}}</tool_call>'
TEXTS = st.lists(
    st.one_of(st.sampled_from(["<tool_call>", "</tool_call>", CALL, "</think>", "{", '"name"']), st.text(max_size=5)),
    max_size=8,
).map("".join)


class Graded(Task):
    """Its verifier gives a number."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem([{"role": "user", "content": "How much?"}], {}) for _ in range(count)]

    def verify(self, answer: Any, response: str, finish_reason: str) -> Verdict:
        return Verdict("correct" if float(response) > 0.5 else "wrong", response, float(response))


class Plain(Graded):
    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("How much?", {}) for _ in range(count)]


class WithTools(Graded):
    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        prompt = Chat([{"role": "user", "content": "x"}], [{"function": {"name": "f"}}])
        return [Problem(prompt, {}) for _ in range(count)]


def task(**options: Any) -> ToolTask:
    return ToolTask(**{"task": {"name": "products"}, "tools": [{"use": "calculator"}], **options})


def steps(made: ToolTask, *actions: str, answer: dict[str, object] | None = None) -> list[Observation]:
    async def play() -> list[Observation]:
        rollout = copy.copy(made)
        await rollout.reset(answer or {"product": "42"})
        return [checked(await rollout.step(action)) for action in actions]

    return asyncio.run(play())


def test_a_call_is_told_and_an_answer_is_judged() -> None:
    told, right, wrong, none = steps(task(), f"I ask. {CALL}", "42", "43", "no idea")
    assert told.content == [{"role": "tool", "content": "42", "name": "calculator"}]
    assert (told.reward, told.done, told.tools[:2]) == (0.0, False, (1, 0))
    assert (right.reward, right.done, right.outcome) == (1.0, True, "correct")
    assert (wrong.reward, wrong.outcome) == (0.0, "wrong")
    assert (none.reward, none.outcome) == (0.0, "unparsable")
    assert right.tools == ToolUse()


def test_several_calls_have_a_message_each_and_errors_cost_what_is_asked() -> None:
    bad = "<tool_call>6*7</tool_call>"
    (told,) = steps(task(error_cost=0.25), f"{CALL}{bad}{CALL}{bad}")
    assert [each["content"][:6] for each in told.content] == ["42", "error:", "42", "error:"]  # type: ignore[index]
    assert told.reward == -0.5 and told.tools[:2] == (4, 2)


def test_calls_in_thoughts_are_not_run() -> None:
    (judged,) = steps(task(), f"<think>I could write {CALL}</think>42")
    assert judged.done and judged.tools.calls == 0
    (told,) = steps(task(), f"<think>Hm.</think>{CALL}")
    assert told.tools.calls == 1


def test_rewards_are_the_options_or_the_verifiers_own() -> None:
    right, wrong = steps(task(reward_correct=0.5, reward_wrong=-0.5), "42", "41")
    assert (right.reward, wrong.reward) == (0.5, -0.5)
    (graded,) = steps(task(task={"name": f"{HERE}:Graded"}), "0.75")
    assert (graded.reward, graded.outcome) == (0.75, "correct")


@given(TEXTS)
def test_whatever_the_policy_writes_is_answered(action: str) -> None:
    for form in ("hermes", "llama"):
        (seen,) = steps(TASKS[form], action)
        if not seen.done:
            assert 1 <= len(seen.content) <= 9 and seen.tools.calls == len(seen.content)


TASKS = {form: task(call_format=form) for form in ("hermes", "llama")}


def test_prompts_carry_the_schemas_and_all_else_is_the_questions_own() -> None:
    made, inner = task(), Products()
    for ours, theirs in zip(made.problems("train", 3, 5, 2), inner.problems("train", 3, 5, 2), strict=True):
        assert isinstance(ours.prompt, Chat) and ours.prompt.messages == theirs.prompt and ours.answer == theirs.answer
        assert [each["function"]["name"] for each in ours.prompt.tools or []] == ["calculator"]
    assert made.num_problems("train") is None and made.is_environment and made.may_overlap
    json.dumps(made.problems("train", 0, 0, 1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tools": []}, r"task\.options\.tools"),
        ({"tools": [{"use": "hammer"}]}, "neither built in"),
        ({"call_format": "xml"}, r"task\.options\.call_format"),
        ({"task": {"name": "look_up"}}, "is an environment itself"),
        ({"task": {"name": "tools", "options": {}}}, r"task\.options"),
        ({"task": {"name": "nothing"}}, "neither built in"),
        ({"max_output": 10**9}, r"task\.options\.max_output"),
    ],
)
def test_options_that_make_no_task_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        task(**options)


@pytest.mark.parametrize(("name", "said"), [("Plain", "gives plain text"), ("WithTools", "bring tools of their own")])
def test_questions_that_tools_can_not_be_told_to_are_refused(name: str, said: str) -> None:
    with pytest.raises(TaskError, match=said):
        task(task={"name": f"{HERE}:{name}"}).problems("train", 0, 0, 1)


def test_code_of_the_users_is_part_of_what_a_recording_is_known_by() -> None:
    tools = [{"use": "calculator"}, {"use": "tests.unit.common.tools.test_built_in_tools:weather"}]
    assert task(task={"name": f"{HERE}:Graded"}, tools=tools).judged_by == [f"{HERE}:Graded", tools[1]["use"]]
    assert task().judged_by == []


def test_what_waits_without_being_async_is_asked_one_thing_at_a_time() -> None:
    assert not task(tools=[{"use": "python"}]).may_overlap
    assert task(tools=[{"use": "python"}], overlap=True).may_overlap
    own = "tests.unit.common.tools.test_built_in_tools"
    assert not task(tools=[{"use": f"{own}:weather"}]).may_overlap
    assert task(tools=[{"use": f"{own}:later"}]).may_overlap


# ---- the demo's model from scratch


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import PreTrainedTokenizerFast

    made = load_task(load_config(Path("deploy/configs/demo_tools.yaml"), []).task)
    found = PreTrainedTokenizerFast(tokenizer_object=made.tokenizer(), pad_token="<pad>", eos_token="<eos>")
    found.chat_template = made.chat_template()
    return found


def test_the_demos_rollout_has_the_tokens_of_its_demonstrations(model: Any) -> None:
    """What a rollout is made of, turn by turn, is what the cold start has seen."""
    made = task()
    first, last = made.demonstrations(0, 2, {"asks": 1.0})
    while first.prompt.messages != last.prompt.messages[:1]:  # type: ignore[union-attr]
        first = first._replace(prompt=Chat(last.prompt.messages[:1], last.prompt.tools))  # type: ignore[union-attr]
        first = first._replace(response=last.prompt.messages[1]["content"])  # type: ignore[union-attr]
    tools = first.prompt.tools  # type: ignore[union-attr]
    begun = [*encode_prompt(model, first.prompt), *model(first.response)["input_ids"], model.eos_token_id]
    (told,) = steps(made, first.response)
    said = TurnText(model, is_chat=True, template={"tools": tools}).encode(told.content, model.eos_token_id)
    assert [*begun, *said] == encode_prompt(model, last.prompt).tolist()
    assert told.content[0]["content"] == last.response  # type: ignore[index]
    (judged,) = steps(made, last.response, answer={"product": last.response})
    assert judged.outcome == "correct"


def test_the_demos_cold_start_shows_both_ways() -> None:
    shown = [each.response for each in task().demonstrations(1, 400, {"asks": 0.25})[::2]]
    assert 0.15 < sum("<tool_call>" in each for each in shown) / 200 < 0.35
    assert all(each.isdecimal() for each in shown if "<tool_call>" not in each)
    with pytest.raises(TaskError, match=r"sft\.phases\.style"):
        task().demonstrations(0, 1, {"ask": 1.0})


def test_the_demos_splits_never_meet() -> None:
    train, held_out = (
        {str(each.prompt) for each in Products().problems(split, 1, 0, 500)} for split in ("train", "held_out")
    )
    assert not train & held_out
    assert (
        load_task(TaskConfig(name="products", options={"num_digits": 2}))
        .verify({"product": "144"}, " 144\n", "stop")
        .outcome
        == "correct"
    )
    assert Products().verify({"product": "144"}, "144", "length").outcome == "unparsable"

"""Chats, tools, template variables, own verifiers and filters of the tasks made of rows."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoTokenizer

from tests.unit.rig.check_model import BYTES, TEMPLATE, save_tokenizer
from vcppo import Chat, Problem, TaskError, Verdict
from vcppo.common.config import TaskConfig
from vcppo.common.tasks import encode_prompt, encode_prompts, load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.dataset import DatasetTask
from vcppo.common.tasks.prompts.chat import ignored, num_bytes, without_words
from vcppo.common.tasks.prompts.messages import messages_of
from vcppo.common.tasks.rows import Row, RowsError

USER = {"role": "user", "content": "What is 2 + 3?"}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 2}'}}]}
TOOL_TEMPLATE = (
    "{{ tools | tojson if tools else '' }}" + TEMPLATE + "{% if thinks == false %}<think></think>{% endif %}"
)


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def chat(*messages: Any, answer: str = "5", **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "answer": answer, **more}


def task_of(folder: Path, *rows: dict[str, Any], **options: Any) -> DatasetTask:
    return DatasetTask(path=write(folder / "a.jsonl", *rows), evaluation_only=True, **options)


def prompts(task: DatasetTask) -> list[Any]:
    return [each.prompt for each in sorted(problems_of(task, "held_out", 0, 0, task.num_problems("held_out")), key=str)]


@pytest.fixture
def own_module(monkeypatch: pytest.MonkeyPatch) -> Any:
    module: Any = types.ModuleType("own_rows")
    module.short = lambda row: len(row["question"]) < 20
    module.judge = lambda answer, response, reason: Verdict(
        "correct" if response.strip() in answer["allowed"] else "wrong", f"{sorted(answer)} {reason}"
    )
    module.number = 3
    monkeypatch.setitem(sys.modules, "own_rows", module)
    return module


class TestMessages:
    def test_a_chat_is_asked_as_it_is(self, tmp_path: Path) -> None:
        turns = [SYSTEM, USER, {"role": "assistant", "content": "5"}, {"role": "user", "content": "And 3 + 3?"}]
        task = task_of(tmp_path, chat(*turns, answer="6"), messages_column="messages")
        assert prompts(task) == [turns]  # the default instruction is for bare questions
        assert task.questions("held_out", 1) == ["What is 2 + 3?\n\n5\n\nAnd 3 + 3?"]

    def test_instruction_and_system_prompt_that_somebody_chose(self, tmp_path: Path) -> None:
        task = task_of(tmp_path, chat(USER), messages_column="messages", instruction="Box it.", system_prompt="Hi.")
        assert prompts(task) == [
            [{"role": "system", "content": "Hi."}, {"role": "user", "content": "What is 2 + 3?\n\nBox it."}]
        ]

    def test_two_system_prompts_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(RowsError, match=r"a\.jsonl:2: 'messages' has a system message of its own.*system_prompt"):
            task_of(tmp_path, chat(USER), chat(SYSTEM, USER), messages_column="messages", system_prompt="Hi.")

    @pytest.mark.parametrize(
        ("messages", "says"),
        [
            ([], "has no message"),
            ("text", "is text that is no list"),
            ('{"role": "user"}', "is dict, not a list"),
            (None, "is NoneType, not a list"),
            ([USER, {"role": "assistant", "content": "5"}], "ends with the assistant's turn"),
            ([USER, SYSTEM], "ends with a system's message"),
            ([SYSTEM, {"role": "tool", "content": "5"}], "has no user's turn"),
            ([{"role": "user", "content": " \n"}], "the last message is empty"),
            (["hello"], "message 1 is str, not an object"),
            ([{"from": "human", "value": "hi"}], r"message 1 has no role \(there are: from, value\)"),
            ([{"role": "human", "content": "hi"}], "role 'human': it must be one of system"),
            ([{"role": ["user"], "content": "hi"}], "role .*it must be one of"),
            ([{"role": "user"}], "message 1 has no content"),
            ([{"role": "user", "content": {"a": 1}}], "content that is dict"),
            ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "part of type 'image_url'"),
            ([{"role": "user", "content": [3]}], "part of int"),
            ([{"role": "user", "content": "a\0b"}], "NUL"),
            ([{"role": "user", "content": "x" * 300_000}], "characters, at most"),
            ([USER | {"tool_calls": [TOOL]}], "only the assistant calls tools"),
            ([USER, {"role": "assistant", "tool_calls": [{}]}, USER], "without a function's name"),
            ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{"}]}, USER], "not JSON"),
            ([USER, {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "[1]"}]}, USER], "not an object"),
        ],
    )
    def test_what_can_not_be_asked(self, tmp_path: Path, messages: Any, says: str) -> None:
        with pytest.raises(RowsError, match=rf"a\.jsonl:1: 'messages'.*{says}"):
            task_of(tmp_path, {"messages": messages, "answer": "5"}, messages_column="messages")

    def test_parts_of_text_are_joined_and_json_text_is_read(self, tmp_path: Path) -> None:
        parts = {"role": "user", "content": [{"type": "text", "text": "What is "}, {"text": "2 + 3"}, "?"]}
        task = task_of(tmp_path, {"messages": json.dumps([parts]), "answer": "5"}, messages_column="messages")
        assert prompts(task) == [[USER]]

    def test_a_tool_call_becomes_an_object_and_its_result_may_come_last(self, tmp_path: Path) -> None:
        result = {"role": "tool", "content": "5", "tool_call_id": "1"}
        task = task_of(tmp_path, chat(USER, CALL, result), messages_column="messages", tools=[TOOL])
        (prompt,) = prompts(task)
        assert prompt.messages[1] == {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}],
        }
        assert prompt.messages[2] == result and prompt.tools == [TOOL]

    def test_fields_that_parquet_adds_are_left_out(self, tmp_path: Path) -> None:
        rows = [chat(USER, CALL, {"role": "tool", "content": "5", "name": "add"}), chat(USER | {"content": "Hi?"})]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        task = DatasetTask(path=str(tmp_path / "a.parquet"), evaluation_only=True, messages_column="messages")
        assert [USER | {"content": "Hi?"}] in prompts(task)

    def test_a_rows_own_system_prompt_and_tools_may_change_the_answer_not_the_question(self, tmp_path: Path) -> None:
        rows = [chat(USER), chat(SYSTEM, USER, answer="6")]
        task = task_of(tmp_path, *rows, messages_column="messages")
        assert task.num_problems("held_out") == 1  # trained on or held out together, and asked once
        with pytest.raises(RowsError, match="another answer"):
            task_of(tmp_path, chat(SYSTEM, USER), chat(SYSTEM, USER, answer="6"), messages_column="messages")

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.sampled_from(["user", "text"]),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "tool_calls", "function"]), inner)
            ),
            max_leaves=20,
        )
    )
    def test_whatever_stands_there_it_is_a_chat_or_refused_by_its_place(self, value: Any) -> None:
        said, found = "", []
        try:
            found = messages_of(Row({"m": value}, "f:1"), "m")
        except TaskError as error:
            said = str(error)
        assert said.startswith("f:1: 'm'") != bool(found)
        assert all(isinstance(each["content"], str) for each in found)


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"messages_column": "m", "question_column": "q"}, "messages_column and question_column exclude"),
            ({"messages_column": "m", "question_columns": ["q"]}, "messages_column and question_columns exclude"),
            ({"messages_column": "m", "prompt_template": "{question}"}, "messages_column and prompt_template exclude"),
            ({"prompt_template": "{question}", "tools": [TOOL]}, "task.options.tools is for the model's chat template"),
            ({"prompt_template": "{question}", "tools_column": "t"}, "tools_column is for"),
            ({"prompt_template": "{question}", "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs is for"),
            ({"tools": [TOOL], "tools_column": "t"}, "tools and tools_column exclude"),
            ({"tools": [{"type": "function"}]}, "task.options.tools: tool 1 has no name"),
            ({"tools": [TOOL, TOOL]}, "two tools called 'add'"),
            ({"chat_template_kwargs": {"add_generation_prompt": False}}, "add_generation_prompt can't be set"),
            ({"chat_template_kwargs": {"a b": False}}, "a b can't be set"),
            ({"answer_columns": ["a"]}, "set task.options.verifier"),
            ({"verifier": "own_rows:judge", "answer_columns": ["a"], "answer_column": "b"}, "exclude each other"),
            ({"verifier": "own_rows:judge", "answer_columns": []}, "name each column once"),
            ({"verifier": "own_rows:judge", "answer_columns": ["a", "a"]}, "name each column once"),
            ({"verifier": "own_rows:judge", "answer_after": "####"}, "answer_after is for math-verify"),
            ({"verifier": "own_rows"}, "not of the form module:function"),
            ({"verifier": "own_rows:other"}, "verifier = 'own_rows:other' can't be imported"),
            ({"verifier": "own_rows:number"}, "is a int, not a function"),
            ({"keep": "no_such_module:keep"}, "keep = 'no_such_module:keep' can't be imported"),
            ({"keep_where": {"level": []}}, "keep_where.level"),
            ({"keep_where": {"level": {"min": 3, "max": 2}}}, "no row can pass"),
            ({"keep_where": {"level": {"least": 3}}}, "give numbers as"),
            ({"keep_where": {"level": {"min": "3"}}}, "give numbers as"),
        ],
    )
    def test_contradictions_are_refused_before_a_row_is_read(
        self, own_module: Any, options: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(TaskError, match=says):
            DatasetTask(path="no-such-file.jsonl", **options)

    def test_benchmarks_refuse_what_they_have_no_use_for(self, tmp_path: Path) -> None:
        with pytest.raises(TaskError, match="verifier"):
            load_task(TaskConfig(name="aime", options={"path": "x.jsonl", "verifier": "own_rows:judge"}))
        with pytest.raises(TaskError, match="messages_column"):
            load_task(TaskConfig(name="gpqa", options={"path": "x.jsonl", "messages_column": "m"}))


class TestToolsAndTemplate:
    def test_tools_of_a_column_and_json_text(self, tmp_path: Path) -> None:
        rows = [
            {"question": "a", "answer": 1, "tools": [TOOL]},
            {"question": "b", "answer": 1, "tools": json.dumps([TOOL])},
            {"question": "c", "answer": 1, "tools": [json.dumps(TOOL)]},
            {"question": "d", "answer": 1, "tools": []},
            {"question": "e", "answer": 1, "tools": None},
        ]
        task = task_of(tmp_path, *rows, tools_column="tools", instruction="")
        found = {str(each.messages[0]["content"]): each.tools for each in prompts(task) if isinstance(each, Chat)}
        assert found == {question: [TOOL] for question in "abc"}
        assert [{"role": "user", "content": "d"}] in prompts(task)

    @pytest.mark.parametrize("tools", ["{", "[1]", [{}], [{"name": ""}], [["a"]], 3])
    def test_tools_that_are_none(self, tmp_path: Path, tools: Any) -> None:
        with pytest.raises(RowsError, match=r"a\.jsonl:1: 'tools'"):
            task_of(tmp_path, {"question": "a", "answer": 1, "tools": tools}, tools_column="tools")

    def test_the_template_gets_tools_and_variables(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path, template=TOOL_TEMPLATE)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        task = task_of(
            tmp_path,
            {"question": "a", "answer": 1},
            tools=[TOOL],
            chat_template_kwargs={"thinks": False},
            instruction="",
        )
        (prompt,) = prompts(task)
        text = tokenizer.decode(encode_prompt(tokenizer, prompt))
        assert text.startswith(json.dumps([TOOL])) and text.endswith("<|assistant|><think></think>")
        (together,) = encode_prompts(tokenizer, [prompt])
        assert together.tolist() == encode_prompt(tokenizer, prompt).tolist()
        assert ignored(tokenizer, prompt) == []

    def test_what_the_template_ignores(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        assert ignored(tokenizer, Chat([USER], [TOOL], {"enable_thinking": False})) == ["tools", "enable_thinking"]

    def test_bytes_bound_the_tokens_of_long_chats(self, tmp_path: Path) -> None:
        save_tokenizer(tmp_path, template=TOOL_TEMPLATE)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path)
        for prompt in (Chat([SYSTEM, USER] * 40, [TOOL] * 5), [USER] * 50, Chat([USER | {"content": "ü" * 50}])):
            added = len(encode_prompt(tokenizer, without_words([USER])))
            assert len(encode_prompt(tokenizer, prompt)) <= num_bytes(prompt) + added
        assert BYTES  # a token a byte: the tokenizer that makes the most

    @pytest.mark.parametrize(
        ("prompt", "says"),
        [
            (Chat([]), "not text or chat messages"),
            (Chat([USER], {"a": 1}), "tools that are no list of dicts"),  # type: ignore[arg-type]
            (Chat([USER], None, ["a"]), "no dict of names"),  # type: ignore[arg-type]
            (Chat([USER], None, {"tokenize": True}), "can't be set: tokenize"),
        ],
    )
    def test_a_users_task_may_give_chats_and_is_told_of_wrong_ones(self, prompt: Chat, says: str) -> None:
        task: Any = types.SimpleNamespace(problems=lambda *_: [Problem(prompt, {})], where=lambda *_: "here")
        with pytest.raises(TaskError, match=says):
            problems_of(task, "train", 0, 0, 1)


class TestOwnVerifier:
    def test_it_gets_the_columns_and_what_follows_the_thinking(self, tmp_path: Path, own_module: Any) -> None:
        rows = [{"question": "a", "allowed": ["x", "y"], "kind": {"a": None}}]
        task = task_of(tmp_path, *rows, verifier="own_rows:judge", answer_columns=["allowed", "kind"])
        (problem,) = problems_of(task, "held_out", 0, 0, 1)
        assert problem.answer == {"allowed": ["x", "y"], "kind": {"a": None}}
        assert task.verify(problem.answer, "<think>z</think> y", "stop") == Verdict(
            "correct", "['allowed', 'kind'] stop"
        )
        assert task.verify(problem.answer, "z", "stop").outcome == "wrong"
        assert task.verify(problem.answer, "y", "length").outcome == "unparsable"  # by judge_truncated
        assert list(task.findings()) and task.judged_by == ["own_rows:judge"]
        task.warm_up()

    def test_without_columns_it_gets_the_answer_whatever_it_is(self, tmp_path: Path, own_module: Any) -> None:
        row = {"question": "a", "answer": r"no \frac{1}{2 math"}
        (problem,) = problems_of(task_of(tmp_path, row, verifier="own_rows:judge"), "held_out", 0, 0, 1)
        assert problem.answer == {"answer": row["answer"]}

    def test_columns_that_can_not_travel_or_are_missing(self, tmp_path: Path, own_module: Any) -> None:
        for value, says in ((float("nan"), "written as JSON"), (None, None)):
            row = {"question": "a", "x": value}
            if says is None:
                assert task_of(tmp_path, row, verifier="own_rows:judge", answer_columns=["x"])
                continue
            with pytest.raises(RowsError, match=rf"a\.jsonl:1: 'x'.*{says}"):
                task_of(tmp_path, row, verifier="own_rows:judge", answer_columns=["x"])
        with pytest.raises(RowsError, match=r"no field 'y' .*task\.options\.answer_columns"):
            task_of(tmp_path, {"question": "a"}, verifier="own_rows:judge", answer_columns=["y"])

    def test_anything_but_a_verdict_is_named(self, tmp_path: Path, own_module: Any) -> None:
        own_module.judge = lambda *_: 1.0
        task = task_of(tmp_path, {"question": "a", "answer": "1"}, verifier="own_rows:judge")
        with pytest.raises(TaskError, match="'own_rows:judge' gave a float, not a Verdict"):
            task.verify({"answer": "1"}, "1", "stop")


class TestFilters:
    ROWS = tuple(
        {"question": f"q{n}" * (1 + 9 * (n == 3)), "answer": n, "level": n, "kind": "ab"[n % 2], "easy": n < 2}
        for n in range(4)
    )

    def asked(self, folder: Path, **options: Any) -> tuple[set[str], dict[str, int]]:
        task = task_of(folder, *self.ROWS, **options)
        return {text[:2] for text in task.questions("held_out", 9)}, dict(task.left_out())

    def test_by_value_list_and_range(self, tmp_path: Path) -> None:
        asked = self.asked
        assert asked(tmp_path, keep_where={"kind": "a"}) == ({"q0", "q2"}, {"keep_where.kind": 2})
        assert asked(tmp_path, keep_where={"level": [1, 2.0]}) == ({"q1", "q2"}, {"keep_where.level": 2})
        assert asked(tmp_path, keep_where={"level": {"min": 1, "max": 2}})[0] == {"q1", "q2"}
        assert asked(tmp_path, keep_where={"easy": True})[0] == {"q0", "q1"}
        counts = {"keep_where.level": 1, "keep_where.kind": 1}
        assert asked(tmp_path, keep_where={"level": {"min": 1}, "kind": "b"}) == ({"q1", "q3"}, counts)
        with pytest.raises(TaskError, match=r"holds no problem \(left out: 4 by keep_where\.level\)"):
            asked(tmp_path, keep_where={"level": True})  # no 1

    def test_by_a_function(self, tmp_path: Path, own_module: Any) -> None:
        assert self.asked(tmp_path, keep="own_rows:short") == ({"q0", "q1", "q2"}, {"keep own_rows:short": 1})

    @pytest.mark.parametrize(
        ("keep", "says"),
        [(lambda row: row["no"], "raised KeyError: 'no': mend it"), (lambda row: 1, "gave int, not True or False")],
    )
    def test_a_function_that_fails_is_named(self, tmp_path: Path, own_module: Any, keep: Any, says: str) -> None:
        own_module.short = keep
        with pytest.raises(RowsError, match=rf"a\.jsonl:1: task\.options\.keep = 'own_rows:short' {says}"):
            self.asked(tmp_path, keep="own_rows:short")

    def test_missing_columns_and_values_that_are_no_numbers(self, tmp_path: Path) -> None:
        with pytest.raises(RowsError, match=r"no field 'year' .*keep_where"):
            self.asked(tmp_path, keep_where={"year": 1})
        with pytest.raises(RowsError, match=r"'kind' is str, and task\.options\.keep_where\.kind compares numbers"):
            self.asked(tmp_path, keep_where={"kind": {"min": 1}})

    def test_rows_that_are_left_out_need_not_be_right(self, tmp_path: Path) -> None:
        rows = [{"question": "", "answer": "", "ok": 0}, {"question": "q", "answer": "1", "ok": 1}]
        assert task_of(tmp_path, *rows, keep_where={"ok": 1}).questions("held_out", 2) == ["q"]

"""The built-in tools but for the calculator, a user's own, and what is refused by name before anything starts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.common.tasks import TaskError
from vcppo.common.tools.search_tool import SearchOptions, SearchTool
from vcppo.common.tools.tool import ArgumentCheck, Tool, ToolError
from vcppo.common.tools.tool_options import make_tools

HERE = "tests.unit.common.tools.test_built_in_tools"


def weather(city: str, days: int = 1) -> str:
    """Says how the weather will be."""
    return f"{city}: rain for {days} days"


def day_of(when: date) -> str:
    return when.strftime("%A")


async def later(words: list[str]) -> str:
    return " ".join(words)


def unhinted(city, *others):  # type: ignore[no-untyped-def]
    return city


def odd_hint(city: Tool) -> str:
    return str(city)


class Counting(Tool):
    name, description = "count", "Counts."
    parameters: Mapping[str, Any] = {"type": "object"}

    def __init__(self, start: int = 0) -> None:
        self.start = start

    def call(self, arguments: Mapping[str, Any]) -> str:
        return str(self.start + len(arguments))


def made(**given: Any) -> Tool:
    (tool,) = make_tools([given])
    return tool


def test_a_function_of_the_users_is_a_tool() -> None:
    tool = made(use=f"{HERE}:weather")
    assert tool.schema()["function"] == {
        "name": "weather",
        "description": "Says how the weather will be.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"title": "City", "type": "string"},
                "days": {"default": 1, "title": "Days", "type": "integer"},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    }
    check = ArgumentCheck(tool)
    assert check.fault_of({"city": "Oslo", "days": 2}) is None
    assert check.fault_of({"city": 3}) == "city: 3 is not of type 'string'"
    assert tool.call({"city": "Oslo", "days": 2}) == "Oslo: rain for 2 days"
    assert made(use=f"{HERE}:later").parameters["required"] == ["words"]
    assert tool.keeps_its_child and not made(use=f"{HERE}:later").keeps_its_child


def test_a_function_gets_what_its_hints_say() -> None:
    assert made(use=f"{HERE}:day_of").call({"when": "2026-11-30"}) == "Monday"


def test_tools_that_take_no_time_need_not_be_async(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert not any(tool.keeps_its_child for tool in (made(use="calculator"), search(tmp_path)))
    assert Counting().keeps_its_child


def test_a_class_of_the_users_gets_its_options() -> None:
    assert made(use=f"{HERE}:Counting", start=4).call({"a": 1}) == "5"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "`use` names the tool"),
        ({"use": "browser"}, "neither built in"),
        ({"use": "calculator", "digits": 3}, "takes no options"),
        ({"use": "python", "second": 3}, r"tools\[0\].second"),
        ({"use": f"{HERE}:nobody"}, "can't be imported"),
        ({"use": f"{HERE}:HERE"}, "not a function"),
        ({"use": f"{HERE}:weather", "days": 3}, "a function takes no options"),
        ({"use": f"{HERE}:Counting", "end": 3}, "options do not fit"),
        ({"use": f"{HERE}:Path"}, "no subclass of vcppo.Tool"),
        ({"use": f"{HERE}:unhinted"}, "no JSON schema|without names"),
        ({"use": f"{HERE}:odd_hint"}, "no JSON schema"),
        ({"use": "search", "path": "no/such/folder"}, "no folder 'no/such/folder'"),
        ({"use": "search", "path": "no_such.jsonl"}, "no file 'no_such.jsonl'"),
        ({"use": "mcp", "command": ["true"]}, "allow"),
        (
            {"use": "mcp", "command": ["x"], "allow": ["a"], "env": ["NO_SUCH_VARIABLE"]},
            "NO_SUCH_VARIABLE, which is not set",
        ),
        ({"use": "mcp", "command": ["no-such-program"], "allow": ["a"]}, "'no-such-program' gives no MCP server"),
        ({"use": "mcp", "command": ["true"], "allow": ["a"]}, "'true' gives no MCP server"),
    ],
)
def test_what_is_no_tool_is_refused_by_name(given: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        make_tools([given])


def search(path: Path, **options: Any) -> SearchTool:
    tool = SearchTool(SearchOptions(path=str(path), **options), "task.options.tools[0]")
    tool.open()
    return tool


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("notes")
    (made / "deep").mkdir()
    (made / "animals.md").write_text("The whale sings.\n\nThe ant carries leaves.\n\n" + "Filler words. " * 90)
    (made / "deep" / "plants.txt").write_text("A cactus stores water. Ants live on acacias.")
    (made / "other.bin").write_bytes(b"whale")
    return made


def test_search_finds_the_passages_that_fit_best(folder: Path) -> None:
    tool = search(folder, results=2)
    assert tool.call({"query": "Where do CACTUSES store water?"}).startswith(
        "[deep/plants.txt]\nA cactus stores water."
    )
    found = tool.call({"query": "ant"})
    assert found.count("[") == 2 and "[animals.md]" in found and "[deep/plants.txt]" in found
    assert tool.call({"query": "zebra"}) == "nothing found"
    with pytest.raises(ToolError, match="no word"):
        tool.call({"query": " *-- "})


def test_search_reads_rows(tmp_path: Path) -> None:
    rows = [{"text": "one fish", "name": "A"}, {"text": "two birds", "name": "B"}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert search(file).call({"query": "birds"}) == f"[{file}:2]\ntwo birds"
    assert search(file, title_column="name").call({"query": "birds"}) == "[B]\ntwo birds"
    with pytest.raises(TaskError, match="no field 'body'"):
        search(file, text_column="body")
    file.write_text("{\n")
    with pytest.raises(TaskError, match=r"rows\.jsonl:1"):
        search(file)


def test_search_refuses_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="holds no text"):
        search(tmp_path)


@settings(max_examples=60)
@given(
    query=st.text(max_size=40)
    | st.sampled_from(['"', "a AND b", "NEAR(a b)", "text:whale", "whale*", "'; DROP TABLE passages"])
)
def test_no_query_is_a_program(folder: Path, query: str) -> None:
    tool = search(folder)
    try:
        said = tool.call({"query": query})
    except ToolError as error:
        said = str(error)
    assert said.startswith(("[", "nothing found", "the query has no word"))
    assert "whale" in tool.call({"query": "whale"})


def test_python_runs_programs_and_says_how_they_ended() -> None:
    tool = made(use="python", seconds=4, memory_mib=128, max_output_kib=1, require_isolation=False)
    assert tool.keeps_its_child
    tool.open()
    assert tool.call({"code": "print(2 ** 10)\nexit()"}) == "1024\n"
    for code, said in (
        ("print('so far'); 1 / 0", "exit code 1: ZeroDivisionError: division by zero printed: so far"),
        ("def", "exit code 1: SyntaxError"),
        ("while True: pass", "more than 4 s"),
        ("print('x' * 5000)", "more than 1 KiB"),
        ("x = bytearray(2 ** 29)", "exit code 1: MemoryError"),
        ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", "exit code 1"),
        ("import numpy", "No module named 'numpy'"),
    ):
        with pytest.raises(ToolError, match=said):
            tool.call({"code": code})

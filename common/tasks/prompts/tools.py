"""JSON schemas of the functions that a prompt offers, from a column or from the options."""

from __future__ import annotations

from typing import Any

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.prompts.columns import as_json, list_of, value_of
from vcppo.common.tasks.rows import Row
from vcppo.common.text.yaml_text import one_line


def tools_of(row: Row, column: str) -> list[dict[str, Any]] | None:
    """The row's tools; None: its field is empty or null, so it has none."""
    if value_of(row, column, "tools_column") in (None, "", [], "[]", "null"):
        return None
    return checked_tools(list_of(row, column, "tools_column"), f"{row.place}: {column!r}")


def checked_tools(tools: list[Any], where: str) -> list[dict[str, Any]]:
    """Tools as the chat template gets them; JSON text of one is read.

    Raises:
        TaskError: one is no object with a name, or two have the same; it begins with `where`.
    """
    found = [_tool(tool, f"{where}: tool {number}") for number, tool in enumerate(tools, 1)]
    names = [str(tool.get("function", tool)["name"]) for tool in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise TaskError(f"{where} has two tools called {one_line(repr(twice[0]), 40)}: rename one")
    as_json(found, where)
    return found


def _tool(tool: Any, where: str) -> dict[str, Any]:
    if isinstance(tool, str):
        try:
            tool = parse_json(tool)
        except JsonError as error:
            raise TaskError(f"{where} is {error}: give the JSON schema of a function") from error
    function = tool.get("function", tool) if isinstance(tool, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not function["name"]:
        raise TaskError(f'{where} has no name: give {{"type": "function", "function": {{"name": …, "parameters": …}}}}')
    return dict(tool)

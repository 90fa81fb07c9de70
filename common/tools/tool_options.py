"""``task.options.tools``: which tools a task has, as a user writes them.

tools:
  - {use: calculator}
  - {use: python, seconds: 2}
  - {use: search, path: notes/}
  - {use: mcp, command: [python, server.py], allow: [read_note]}
  - {use: "my_tools:weather"}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vcppo.common.tasks.interface import TaskError, parse_options
from vcppo.common.text.yaml_text import one_line
from vcppo.common.tools.calculator import Calculator
from vcppo.common.tools.mcp_tool import McpOptions, mcp_tools
from vcppo.common.tools.own_tool import own_tool
from vcppo.common.tools.python_tool import PythonOptions, PythonTool
from vcppo.common.tools.search_tool import SearchOptions, SearchTool
from vcppo.common.tools.tool import Tool

_KNOWN = ("calculator", "python", "search", "mcp")


def make_tools(given: Sequence[Mapping[str, Any]]) -> list[Tool]:
    """The tools that are named. An MCP server is started to ask it for its tools, and ended.

    Raises:
        TaskError: an unknown tool, options it does not take, or one that can't be had.
    """
    return [tool for number, each in enumerate(given) for tool in _made(each, f"task.options.tools[{number}]")]


def _made(given: Mapping[str, Any], where: str) -> list[Tool]:
    use = given.get("use")
    if not isinstance(use, str):
        raise TaskError(f"{where} = {one_line(dict(given), 120)}: `use` names the tool: {', '.join(_KNOWN)}, or yours")
    options = {name: value for name, value in given.items() if name != "use"}
    if use == "python":
        return [PythonTool(parse_options(PythonOptions, options, where))]
    if use == "search":
        return [SearchTool(parse_options(SearchOptions, options, where), where)]
    if use == "mcp":
        return mcp_tools(parse_options(McpOptions, options, where), where)
    if use != "calculator" and ":" not in use:
        raise TaskError(f"{where}.use = {use!r} is neither built in ({', '.join(_KNOWN)}) nor of the form module:name")
    if use != "calculator":
        return [own_tool(use, options, where)]
    if options:
        raise TaskError(f"{where}: calculator takes no options: take {', '.join(options)} out")
    return [Calculator()]

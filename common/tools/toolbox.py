"""Runs the calls of one turn, one after the other, within a time and a size. Whatever happens, each call gets its text.

What a tool says is anybody's text: it is cut to a size and made valid UTF-8 here. That none of it becomes a control
token is seen to where it is encoded (`vcppo.common.environments.turn_text`).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple

from vcppo.common.environments.environment import ToolUse
from vcppo.common.tasks.interface import ChatMessages, TaskError
from vcppo.common.text.yaml_text import one_line
from vcppo.common.tools.call_formats import BadCall, Call
from vcppo.common.tools.tool import ArgumentCheck, Tool, ToolError

_MAX_ERROR = 500


class ToolLimits(NamedTuple):
    """Of the calls of one turn.

    Attributes:
        seconds: all of them together.
        output: characters of each result.
    """

    seconds: float
    output: int


class Toolbox:
    """Tools by name.

    Raises:
        TaskError: two of one name, or one that is unusable.
    """

    def __init__(self, tools: Sequence[Tool], limits: ToolLimits) -> None:
        self._tools = {tool.name: (tool, ArgumentCheck(tool)) for tool in tools}
        self._limits = limits
        names = [tool.name for tool in tools]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise TaskError(f"task.options.tools: two tools are called {twice[0]!r}: leave one out")

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """As the chat template gets them."""
        return [tool.schema() for tool, _ in self._tools.values()]

    def open(self) -> None:
        """Make all ready, in the child that will call them."""
        for tool, _ in self._tools.values():
            tool.open()

    async def connect(self) -> None:
        """Connect all to what they need, in the event loop of the calls."""
        for tool, _ in self._tools.values():
            await tool.connect()

    async def run(self, calls: Sequence[Call | BadCall]) -> tuple[ChatMessages, ToolUse]:
        """A message of role ``tool`` for each call, in order, and what they took."""
        began = time.monotonic()
        messages, num_errors = [], 0
        for call in calls:
            try:
                text = await self._text(call, self._limits.seconds - (time.monotonic() - began))
            except ToolError as error:
                num_errors += 1
                text = f"error: {one_line(error, _MAX_ERROR)}"
            # Some templates want a name, and what the policy made up is none.
            name = call.name if isinstance(call, Call) and call.name in self._tools else "unknown"
            messages.append({"role": "tool", "content": cut(text, self._limits.output), "name": name})
        return messages, ToolUse(len(calls), num_errors, time.monotonic() - began)

    async def _text(self, call: Call | BadCall, seconds: float) -> str:
        if isinstance(call, BadCall):
            raise ToolError(call.fault)
        if call.name not in self._tools:
            known = ", ".join(self._tools)
            raise ToolError(f"there is no tool {one_line(repr(call.name), 80)}; there are: {known}")
        tool, check = self._tools[call.name]
        if (fault := check.fault_of(call.arguments)) is not None:
            raise ToolError(f"wrong arguments for {call.name}: {fault}")
        if seconds <= 0:
            raise ToolError(f"not run: the calls of a turn have {self._limits.seconds:g} s together")
        return await self._answer(tool, call.arguments, seconds)

    async def _answer(self, tool: Tool, arguments: Mapping[str, Any], seconds: float) -> str:
        try:
            found = tool.call(arguments)
            if inspect.isawaitable(found):
                found = await self._in_time(found, seconds)
        except (ToolError, Late) as error:
            raise ToolError(str(error)) from error
        except Exception as error:  # a tool is anybody's code: whatever it raises is told to the policy
            raise ToolError(f"{tool.name}: {type(error).__name__}: {error}") from error
        if not isinstance(found, str):
            raise ToolError(f"{tool.name} gave a {type(found).__name__}, not text")
        return found

    async def _in_time(self, asking: Awaitable[str], seconds: float) -> str:
        call = asyncio.ensure_future(_coroutine(asking))
        try:
            done, _ = await asyncio.wait((call,), timeout=seconds)
        finally:
            call.cancel()  # nothing, when it is done
        if not done:  # not `asyncio.timeout`: a TimeoutError may be the tool's own
            raise Late(f"no answer in {self._limits.seconds:g} s")
        return call.result()


class Late(Exception):
    """An async call had its time."""


def cut(text: str, most: int) -> str:
    """At most so many characters and a note, all of which UTF-8 can hold."""
    if len(text) > most:
        text = f"{text[:most]}\n… ({len(text) - most:,} more characters are cut off)"
    return text.encode("utf-8", "replace").decode()


async def _coroutine(asking: Awaitable[str]) -> str:
    return await asking

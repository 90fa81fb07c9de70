"""Tools of an MCP server that is started by a command and talked to over stdin and stdout.

Each child of the environment has a server of its own, which all of the child's rollouts share. It is started with the
child, and again when it has died. Only the tools of the allow-list are offered, and only they can be called. A
server gets a few harmless variables of the environment (`PATH`, `HOME`), and those that are named.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import structlog
from pydantic import Field

from vcppo.common.tasks.interface import TaskError, TaskOptions
from vcppo.common.text.yaml_text import one_line
from vcppo.common.tools.tool import Tool, ToolError

log = structlog.get_logger(__name__)

_MAX_PAGES = 100


class McpOptions(TaskOptions):
    """Options of `use: mcp`."""

    command: list[str] = Field(min_length=1)
    """What starts the server: a program and its arguments."""

    allow: list[str] = Field(min_length=1)
    """Names of its tools that the policy may call; others are not offered."""

    env: list[str] = Field(default_factory=list)
    """Names of environment variables that the server gets too, such as one with a key."""

    start_seconds: float = Field(default=20.0, gt=0)
    """It has so long to start and to name its tools."""


class McpServer:
    """One server by its command. A connection belongs to one event loop: that of the child."""

    def __init__(self, options: McpOptions, where: str) -> None:
        self._options, self._where = options, where
        if missing := [name for name in options.env if name not in os.environ]:
            raise TaskError(f"{where}.env names {missing[0]}, which is not set: set it where vcppo is started")
        self._holder: asyncio.Task[None] | None = None
        self._client: asyncio.Future[Any] | None = None
        self._starting: asyncio.Future[None] | None = None

    def tools(self) -> list[Any]:
        """What the server offers. It is started for that, and ended.

        Raises:
            TaskError: it does not start, or does not answer.
        """
        with ThreadPoolExecutor(1) as thread:  # this one may have an event loop that runs
            return thread.submit(lambda: asyncio.run(self._listed())).result()

    async def connect(self) -> Any:
        """The connection, made if there is none. Raises ToolError when the server does not start."""
        if self._client is None or self._holder is None or self._holder.done():
            self._client = asyncio.get_running_loop().create_future()
            self._holder = asyncio.create_task(self._hold(self._client))
        return await asyncio.shield(self._client)

    async def call(self, name: str, arguments: Mapping[str, Any]) -> Any:
        """What the server says to one call.

        Raises:
            ToolError: it is not there, or refuses the call.
        """
        client = await self.connect()
        try:
            return await client.call_tool(name, dict(arguments))
        except _library().MCPError as error:
            if error.code == _library().types.CONNECTION_CLOSED and self._holder is not None:
                self._holder.cancel()
                self._holder = None
                self._starting = asyncio.ensure_future(self._start_another())  # ready for the next call
            raise ToolError(one_line(error, 300)) from error

    async def _hold(self, ready: asyncio.Future[Any]) -> None:
        """One task enters and leaves the connection, as the library wants it."""
        try:
            async with self._connection() as client:
                ready.set_result(client)
                await asyncio.Event().wait()  # until it is cancelled
        except Exception as error:  # noqa: BLE001  (a server is anybody's program: the policy is told what comes)
            if not ready.done():
                ready.set_exception(ToolError(f"the server does not start ({one_line(_first(error), 200)})"))

    async def _start_another(self) -> None:
        try:
            await self.connect()
        except ToolError as error:
            log.warning("mcp_server_lost", command=one_line(" ".join(self._options.command), 120), error=str(error))

    async def _listed(self) -> list[Any]:
        command = one_line(" ".join(self._options.command), 120)
        try:
            async with asyncio.timeout(self._options.start_seconds), self._connection() as client:
                found, cursor = [], None
                for _ in range(_MAX_PAGES):
                    page = await client.list_tools(cursor=cursor)
                    found += page.tools
                    cursor = page.next_cursor
                    if cursor is None:
                        break
                return found
        except Exception as error:  # as above
            raise TaskError(
                f"{self._where}.command: {command!r} gives no MCP server ({one_line(_first(error), 200)}): its own "
                "words are in the lines above; try the command by hand"
            ) from error

    def _connection(self) -> Any:
        library = _library()
        server = library.StdioServerParameters(
            command=self._options.command[0],
            args=self._options.command[1:],
            env={name: os.environ[name] for name in self._options.env},
        )
        return library.Client(server, read_timeout_seconds=self._options.start_seconds)


class McpTool(Tool):
    """One tool of a server."""

    def __init__(self, server: McpServer, found: Any) -> None:
        self.name, self.description = str(found.name), str(found.description or found.name)
        self.parameters = found.input_schema
        self._server = server

    async def connect(self) -> None:
        """See `Tool.connect`."""
        try:
            await self._server.connect()
        except ToolError as error:
            raise TaskError(f"task.options.tools: {self.name}: {error}") from error

    async def call(self, arguments: Mapping[str, Any]) -> str:
        """The text of what the server says; what is no text is named."""
        result = await self._server.call(self.name, arguments)
        text = "\n".join(
            each.text if each.type == "text" else f"({each.type}, which can't be shown)" for each in result.content
        )
        if result.is_error:
            raise ToolError(text or "the tool failed")
        return text


def mcp_tools(options: McpOptions, where: str) -> list[Tool]:
    """The allowed tools of a server.

    Raises:
        TaskError: it does not start, or lacks one that is allowed.
    """
    server = McpServer(options, where)
    found = {each.name: each for each in server.tools()}
    if missing := [name for name in options.allow if name not in found]:
        known = one_line(", ".join(found), 200)
        raise TaskError(f"{where}.allow names {missing[0]!r}, which the server does not have: it has {known}")
    return [McpTool(server, found[name]) for name in dict.fromkeys(options.allow)]


def _library() -> Any:
    try:
        import mcp
    except ImportError as error:
        raise TaskError("`use: mcp` needs the package mcp: pip install 'vcppo[mcp]'") from error
    return mcp


def _first(error: BaseException) -> BaseException:
    """The cause within groups of exceptions."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

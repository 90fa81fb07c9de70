"""The process in which an environment of `verifiers` plays the rollouts of one environment child.

start ─▶ rollout … rollout ─▶ (the child ends, and its family with it)
           cancelled: asked for a sign of life. None in time: ended; its other rollouts are lost, not at fault
           it dies: the rollouts under way are at fault, and the next one starts another
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.environments.agent import SessionLost
from vcppo.common.environments.verifiers_program import MAX_LINE
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.process.family import Family
from vcppo.common.tasks.interface import TaskError
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

PROGRAM = str(Path(__file__).with_name("verifiers_program.py"))
_ALIVE_SECONDS = 5.0
_OURS = ("PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "VIRTUAL_ENV")


def other_environment(python: str) -> dict[str, str]:
    """For a process of the other Python: without what leads to our packages, and with the programs beside it first."""
    inherited = {name: value for name, value in os.environ.items() if name not in _OURS}
    return inherited | {"PATH": os.pathsep.join([str(Path(python).absolute().parent), os.environ.get("PATH", "")])}


def first_line(line: bytes, python: str) -> None:
    """The program's first line. Raises TaskError where there is no such environment."""
    try:
        said = parse_json(line)
    except JsonError:
        said = {}
    if isinstance(said, dict) and "failed" in said:
        raise TaskError(f"task.options: {one_line(str(said['failed']), 600)}")
    if not isinstance(said, dict) or "ready" not in said:
        raise TaskError(
            f"task.options.python = {python!r} did not run the adapter: its own error is in the lines above; name a"
            " Python of version 3.10 or later, in a virtual environment that has the package verifiers"
        )


class VerifiersProcess:
    """At most one at a time. All methods belong to one event loop.

    Args:
        python: the other Python.
        first: the line that says which environment.
    """

    def __init__(self, python: str, first: dict[str, Any]) -> None:
        self.first = first
        self._python = python
        self._current: _Running | None = None
        self._numbers = itertools.count(1)
        self._starting: asyncio.Lock | None = None

    async def start(self) -> _Running:
        """The process that is there, or a new one. Raises TaskError."""
        self._starting = self._starting or asyncio.Lock()
        async with self._starting:
            if self._current is None or self._current.is_over:
                self._current = await self._started()
            return self._current

    async def rollout(self, asked: dict[str, Any]) -> float:
        """One rollout; its reward.

        Raises:
            ValueError: it failed; the text says how.
            SessionLost: the process had to be ended for another rollout.
            SystemExit: there is no process any more, so this one is of no use.
        """
        try:
            running = await self.start()
        except TaskError as error:
            log.error("verifiers_not_started", error=str(error))
            raise SystemExit(1) from error
        said = await running.ask(next(self._numbers), asked)
        if "reward" in said:
            return float(said["reward"])
        raise ValueError(str(said.get("fault")))

    async def _started(self) -> _Running:
        try:
            family = await Family.start([self._python, PROGRAM], other_environment(self._python), MAX_LINE)
            await family.send(json.dumps(self.first).encode() + b"\n")
            line = await family.receive_line()
        except (OSError, ValueError):
            line = b""
        first_line(line, self._python)
        return _Running(family)


class _Running:
    """A process that has said that it is ready."""

    def __init__(self, family: Family) -> None:
        self.is_over = False
        self._family = family
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._alive: dict[int, asyncio.Event] = {}
        self._tasks = {asyncio.create_task(self._read())}

    async def ask(self, number: int, asked: dict[str, Any]) -> dict[str, Any]:
        """The answer to one rollout. When this is cancelled, the rollout is too."""
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            await self._send({"number": number, "rollout": asked})
            return await answer
        except asyncio.CancelledError:
            watching = asyncio.create_task(self._cancel(number))
            self._tasks.add(watching)
            watching.add_done_callback(self._tasks.discard)
            raise
        finally:
            self._waiting.pop(number, None)

    async def _cancel(self, number: int) -> None:
        """The rollout is over. A process that gives no sign of life is busy with something that does not wait."""
        alive = self._alive[number] = asyncio.Event()
        try:
            async with asyncio.timeout(_ALIVE_SECONDS):
                await self._send({"cancel": number})
                await alive.wait()
        except TimeoutError:
            log.warning("verifiers_ended", why=f"no sign of life in {_ALIVE_SECONDS:g} s", lost=len(self._waiting))
            await self._end(SessionLost("the environment's process was blocked by another rollout"))
        finally:
            del self._alive[number]

    async def _send(self, line: dict[str, Any]) -> None:
        try:
            await self._family.send(json.dumps(line).encode() + b"\n")
        except OSError as error:
            await self._end(ValueError(f"the environment's process died ({type(error).__name__})"))

    async def _read(self) -> None:
        try:
            while line := await self._family.receive_line():
                self._take(parse_json(line))
            detail = "it ended"
        except (OSError, ValueError, JsonError) as error:
            detail = f"{type(error).__name__}: {error}"
        await self._end(ValueError(f"the environment's process died: {detail}"))

    def _take(self, said: dict[str, Any]) -> None:
        if (alive := self._alive.get(said.get("cancelled", 0))) is not None:
            alive.set()
        if (waiting := self._waiting.get(said.get("number", 0))) is not None and not waiting.done():
            waiting.set_result(said)

    async def _end(self, why: Exception) -> None:
        """End it, and tell whoever waits."""
        self.is_over = True
        for each in self._waiting.values():
            if not each.done():
                each.set_exception(why)
        await self._family.end()

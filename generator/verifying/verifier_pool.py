"""Verifiers in killable child processes: a response that makes one hang costs a child, never the generator.

verify() ─▶ idle child (or wait for one) ─▶ one JSON line each way ─▶ Verdict
             late: killed, replaced, outcome `timeout`
             died, or answers with anything but a verdict on what it was asked: killed, replaced, outcome `crash`

Killed means with all that it has started, however well that hides (`common.process.family`); the verdict does not wait
for it, nor for the new child.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import structlog

from vcppo.common.config import TaskConfig
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.process.family import Family
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks import Verdict
from vcppo.common.user_modules import SAFE_PATH
from vcppo.generator.verifying.spawn_patiently import spawn_patiently
from vcppo.generator.verifying.verifier_lines import MAX_REPLY_BYTES, READY, Reply, parse_reply, request_line

log = structlog.get_logger(__name__)

_START_SECONDS = 60.0


class VerifierError(VcppoError):
    """The task's verifier can't be started at all."""


class VerifierPool:
    """``task.verifier_processes`` children. Make it, ``await start()``, ``await verify(...)``, ``await close()``."""

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        self._idle: asyncio.Queue[Family | Exception] = asyncio.Queue()
        self._children: set[Family] = set()
        self._replacing: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(READY + 1)

    async def start(self) -> None:
        """Raises VerifierError when a child does not come up; the child's own error is on stderr.

        One that died at the very first start would do so again: the error then says that nobody should try (exit code
        2). A slow one, or one that was killed, may come up another time.
        """
        try:
            children = await asyncio.gather(*(self._spawn() for _ in range(self._config.verifier_processes)))
        except VerifierError as error:
            if isinstance(error.__cause__, EOFError):
                error.exit_code = EXIT_USAGE
            raise
        for child in children:
            self._idle.put_nowait(child)

    async def verify(
        self,
        answer: Mapping[str, object],
        response: str,
        finish_reason: FinishReason,
        messages: Sequence[Mapping[str, Any]] = (),
    ) -> Verdict:
        """Judge one response; returns within ``task.verifier_timeout_seconds`` of getting a child, whatever it does.

        Args:
            messages: the whole conversation, for reward functions that ask for it.

        Raises VerifierError when a child that had to be replaced did not come up again.
        """
        number = next(self._numbers)
        request = request_line(number, answer, response, finish_reason, messages)
        child = await self._idle.get()
        if isinstance(child, Exception):
            self._idle.put_nowait(child)  # for the next caller too
            raise child
        try:
            async with asyncio.timeout(self._config.verifier_timeout_seconds):
                verdict, detail = await self._ask(child, request, number)
        except TimeoutError:
            detail = f"no verdict in {self._config.verifier_timeout_seconds:g} s"
            return self._replaced(child, Verdict("timeout", None), detail)
        except (OSError, ValueError, EOFError) as error:
            return self._replaced(child, Verdict("crash", None), f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            self._replaced(child, Verdict("crash", None), "its rollout was dropped")
            raise
        self._idle.put_nowait(child)
        if detail:
            log.warning("verifier_crash", detail=detail, task=self._config.name)
        return verdict

    async def close(self) -> None:
        """End all children, with whatever they have started, and wait for their ends."""
        for task in list(self._replacing):
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        await asyncio.gather(*(self._end(child) for child in list(self._children)))

    async def _spawn(self) -> Family:
        command = [sys.executable, "-m", "vcppo.generator.verifying.verifier_child"]
        keys = {self._config.reward_service.key_variable, self._config.judge.key_variable}  # not the task's to see
        inherited = {name: value for name, value in os.environ.items() if name not in keys}
        environment = inherited | SAFE_PATH | {"OMP_NUM_THREADS": "1"}
        child = await Family.start(command, environment, MAX_REPLY_BYTES)
        self._children.add(child)
        try:
            config = self._config.model_dump_json().encode() + b"\n"
            async with asyncio.timeout(_START_SECONDS):
                await self._ask(child, config, READY)
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            await self._end(child)
            raise VerifierError(
                f"the verifier of task {self._config.name} did not start ({type(error).__name__}): its own error is in"
                " the lines above; mend the task's `verify`, its options or task.rewards, then start again"
            ) from error
        return child

    async def _ask(self, child: Family, line: bytes, number: int) -> Reply:
        """ValueError: it answers something else, or without end."""
        await child.send(line)
        reply = await child.receive_line()
        if not reply:
            raise EOFError("the verifier child died")
        return parse_reply(reply, number)

    def _replaced(self, child: Family, verdict: Verdict, detail: str) -> Verdict:
        """`verdict`, at once; the child is ended and another one started beside."""
        log.warning("verifier_killed", outcome=verdict.outcome, detail=detail, task=self._config.name)
        child.kill_soon()
        task = asyncio.create_task(self._replace(child))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)
        return verdict

    async def _replace(self, child: Family) -> None:
        await self._end(child)
        try:
            self._idle.put_nowait(await spawn_patiently(self._spawn, "a verifier"))
        except (VerifierError, OSError) as error:
            self._idle.put_nowait(error)  # whoever wants a verdict hears of it

    async def _end(self, child: Family) -> None:
        await child.end()
        self._children.discard(child)

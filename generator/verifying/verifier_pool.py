"""Verifiers in killable child processes: a response that makes one hang costs a child, never the generator.

verify() ─▶ idle child (or wait for one) ─▶ one JSON line each way ─▶ Verdict
             late: killed, replaced, outcome `timeout`
             died, or answers with anything but a verdict on what it was asked: killed, replaced, outcome `crash`
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import Mapping
from typing import Any

import structlog

from vcppo.common.config import TaskConfig
from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks import Verdict
from vcppo.common.user_modules import SAFE_PATH
from vcppo.generator.verifying.verifier_lines import MAX_REPLY_BYTES, READY, Reply, parse_reply, request_line

log = structlog.get_logger(__name__)

_START_SECONDS = 60.0


class VerifierError(VcppoError):
    """The task's verifier can't be started at all."""


class VerifierPool:
    """``task.verifier_processes`` children. Make it, ``await start()``, ``await verify(...)``, ``await close()``."""

    def __init__(self, config: TaskConfig) -> None:
        self._config = config
        self._idle: asyncio.Queue[asyncio.subprocess.Process] = asyncio.Queue()
        self._children: set[asyncio.subprocess.Process] = set()
        self._numbers = itertools.count(READY + 1)

    async def start(self) -> None:
        """Raises VerifierError when a child does not come up; the child's own error is on stderr."""
        children = await asyncio.gather(*(self._spawn() for _ in range(self._config.verifier_processes)))
        for child in children:
            self._idle.put_nowait(child)

    async def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Judge one response; returns within ``task.verifier_timeout_seconds`` of getting a child."""
        number = next(self._numbers)
        request = request_line(number, answer, response, finish_reason)
        child = await self._idle.get()
        try:
            async with asyncio.timeout(self._config.verifier_timeout_seconds):
                verdict, detail = await self._ask(child, request, number)
        except TimeoutError:
            return await self._replace(child, "timeout", f"no verdict in {self._config.verifier_timeout_seconds:g} s")
        except (OSError, ValueError, EOFError) as error:
            return await self._replace(child, "crash", f"{type(error).__name__}: {error}")
        except asyncio.CancelledError:
            _kill(child)  # close() waits for it
            raise
        self._idle.put_nowait(child)
        if detail:
            log.warning("verifier_crash", detail=detail, task=self._config.name)
        return verdict

    async def close(self) -> None:
        """End all children and wait for their ends."""
        await asyncio.gather(*(self._end(child) for child in list(self._children)))

    async def _spawn(self) -> asyncio.subprocess.Process:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "vcppo.generator.verifying.verifier_child",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=MAX_REPLY_BYTES,
            env=os.environ | SAFE_PATH | {"OMP_NUM_THREADS": "1"},
        )
        self._children.add(child)
        try:
            config = self._config.model_dump_json().encode() + b"\n"
            async with asyncio.timeout(_START_SECONDS):
                await self._ask(child, config, READY)
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            await self._end(child)
            raise VerifierError(
                f"the verifier of task {self._config.name} did not start ({type(error).__name__}): see its error above"
            ) from error
        return child

    async def _ask(self, child: asyncio.subprocess.Process, line: bytes, number: int) -> Reply:
        """ValueError: it answers something else, or without end."""
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(line)
        await child.stdin.drain()
        reply = await child.stdout.readline()
        if not reply:
            raise EOFError("the verifier child died")
        return parse_reply(reply, number)

    async def _replace(self, child: asyncio.subprocess.Process, outcome: Any, detail: str) -> Verdict:
        await self._end(child)
        log.warning("verifier_killed", outcome=outcome, detail=detail, task=self._config.name)
        self._idle.put_nowait(await self._spawn())
        return Verdict(outcome, None)

    async def _end(self, child: asyncio.subprocess.Process) -> None:
        _kill(child)
        if child.stdin is not None:
            child.stdin.close()
        await child.wait()
        self._children.discard(child)


def _kill(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.kill()

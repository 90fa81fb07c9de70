"""Environments in killable child processes: many rollouts share a child, and a call that hangs costs that child.

open() ─▶ the child with the fewest rollouts ─▶ reset ─▶ step … step ─▶ close
             late or dead: the child is ended with all that it has started, and another one starts
                 the call that was late, or under way when it died: `timeout` or `crash`
                 other rollouts in that child: `RolloutLost`; their prompts are handed back

An async environment keeps its own deadline for each call, so a slow one costs its own rollout only. Ended means with
everything it has started, however well that hides (`common.process.family`).
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import structlog

from vcppo.common.config import TaskConfig
from vcppo.common.environments.environment import Observation, ToolUse
from vcppo.common.environments.told import Told
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.process.family import Family
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.rewards.reward_rule import NO_VERDICT
from vcppo.common.tasks import Verdict, task_class
from vcppo.common.user_modules import SAFE_PATH
from vcppo.generator.turns.environment_child import call_seconds
from vcppo.generator.turns.environment_lines import (
    MAX_REPLY_BYTES,
    READY,
    Answer,
    Call,
    Ready,
    parse_answer,
    parse_ready,
    request_line,
)
from vcppo.generator.verifying.spawn_patiently import spawn_patiently
from vcppo.generator.verifying.verifier_pool import VerifierPool

log = structlog.get_logger(__name__)

_START_SECONDS = 60.0
_GRACE_SECONDS = 2.0  # an async child that keeps its deadlines answers within it


class EnvironmentNotStarted(VcppoError):
    """The task's environment can't be started at all."""


class RolloutLost(Exception):
    """The child that held a rollout is gone, and not by that rollout's fault."""


@dataclass
class CallCounts:
    """Since they were last taken.

    Attributes:
        requests: of agents, that the policy has answered.
        segments: of agents' rollouts, but the first of each.
    """

    calls: int = 0
    errors: int = 0
    seconds: float = 0.0
    requests: int = 0
    segments: int = 0
    tools: ToolUse = field(default_factory=ToolUse)


class EnvironmentPool:
    """``task.verifier_processes`` children. Make it, ``await start()``, ``open()`` rollouts, ``await close()``.

    Attributes:
        is_chat: whether the task's prompts are chats; known after `start`.
        template: variables that they give the chat template beside messages, likewise.
        counts: of calls and faults.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.is_chat = False
        self.template: dict[str, Any] = {}
        self.counts = CallCounts()
        self._config = config
        self._seconds = call_seconds(config, task_class(config.name))
        self._calls = asyncio.Semaphore(config.environment_calls)
        has_functions = bool(config.rewards) or config.format_pattern is not None
        self._functions = VerifierPool(config) if has_functions else None
        self._children: set[_Child] = set()
        self._ending: set[_Child] = set()  # of them
        self._replacing: set[asyncio.Task[None]] = set()
        self._asking: set[asyncio.Task[Answer]] = set()
        self._numbers = itertools.count(READY + 1)
        self._changed = asyncio.Event()  # a child is up, or none can be
        self._failure: Exception | None = None

    def child_environment(self) -> dict[str, str]:
        """Variables that its children have, and this process has not."""
        return {}

    async def start(self) -> None:
        """Raises EnvironmentNotStarted when a child does not come up; the child's own error is on stderr.

        Raises VerifierError when that happens to one of the reward functions.
        """
        functions = [] if self._functions is None else [self._functions.start()]
        try:
            await asyncio.gather(*(self._spawn() for _ in range(self._config.verifier_processes)), *functions)
        except EnvironmentNotStarted as error:
            if isinstance(error.__cause__, EOFError):
                error.exit_code = EXIT_USAGE  # it died at the very first start, and would do so again
            raise

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Session]:
        """A rollout's place in a child; its state is dropped with the context, whatever ends it.

        Raises:
            EnvironmentNotStarted: a child that had to be replaced did not come up again.
        """
        child = await self._least_busy()
        session = Session(self, child, next(self._numbers))
        child.num_rollouts += 1
        try:
            yield session
        finally:
            child.num_rollouts -= 1
            child.send(request_line(next(self._numbers), session.number, "close"))

    async def close(self) -> None:
        """End all children, with whatever they have started, and wait for their ends."""
        if self._functions is not None:
            await self._functions.close()
        for task in list(self._replacing):
            task.cancel()
        await asyncio.gather(*self._replacing, return_exceptions=True)
        self._ending |= self._children
        await asyncio.gather(*(self._end(child) for child in list(self._children)))
        await asyncio.gather(*self._asking, return_exceptions=True)

    @property
    def tells(self) -> bool:
        """Whether anybody is told of rollouts that are over: reward functions, a format's pattern, a reward source."""
        return self._functions is not None or self._config.reward_source is not None

    async def graded(
        self, verdict: Verdict, answer: Mapping[str, object], finish_reason: FinishReason, told: Told
    ) -> Verdict:
        """A rollout's verdict with the reward functions' components; they have a child and a deadline of their own.

        Where one of them is late or fails, that is the outcome, and the turns' rewards are not trained.

        Raises:
            VerifierError: see `VerifierPool.verify`.
        """
        if self._functions is None or verdict.outcome in NO_VERDICT:
            return verdict
        found = await self._functions.verify(answer, told.response, finish_reason, told.messages)
        if found.outcome in NO_VERDICT:
            return Verdict(found.outcome, None)
        return verdict._replace(components=found.components)

    async def ask(self, child: _Child, rollout: int, call: Call, given: object) -> Answer:
        """One call; returns within its deadline (`call_seconds`) of its turn, whatever the environment does.

        Raises:
            RolloutLost: the child ended for another reason, or what the rollout needs in it.
        """
        asking = asyncio.ensure_future(self._ask(child, rollout, call, given))
        self._asking.add(asking)
        asking.add_done_callback(self._asked)
        # Shielded: a rollout that is dropped leaves its call to end in its time, and costs the others nothing.
        return await asyncio.shield(asking)

    async def _ask(self, child: _Child, rollout: int, call: Call, given: object) -> Answer:
        seconds = self._seconds + (_GRACE_SECONDS if child.ready.is_async else 0.0)
        async with self._calls if child.ready.is_async else child.turn:
            if child.is_over:
                raise RolloutLost
            began = time.monotonic()
            try:
                async with asyncio.timeout(seconds):
                    answer = await child.ask(next(self._numbers), rollout, call, given)
            except TimeoutError:
                self._replace(child, f"no answer in {seconds:g} s")
                answer = Answer(Observation(), "timeout", f"{call}() took more than {seconds:g} s")
            except ChildDied as error:
                answer = Answer(Observation(), "crash", str(error), has_died=True)
        if answer.is_lost:
            log.warning("environment_lost", detail=answer.detail, task=self._config.name)
            raise RolloutLost
        self.counts.calls += 1
        self.counts.seconds += time.monotonic() - began
        self.counts.tools = self.counts.tools.and_(answer.observation.tools)
        if answer.fault is not None:
            self.counts.errors += 1
            log.warning("environment_fault", outcome=answer.fault, detail=answer.detail, task=self._config.name)
        return answer

    def _asked(self, asking: asyncio.Task[Answer]) -> None:
        self._asking.discard(asking)
        if not asking.cancelled():
            asking.exception()  # whoever asked may have been dropped: it is then nobody's

    async def _least_busy(self) -> _Child:
        while True:
            usable = [child for child in self._children if not child.is_over]
            if usable:
                return min(usable, key=lambda child: child.num_rollouts)
            if self._failure is not None:
                raise self._failure
            self._changed.clear()
            await self._changed.wait()

    async def _spawn(self) -> None:
        command = [sys.executable, "-m", "vcppo.generator.turns.environment_child"]
        source = self._config.reward_source
        # The key of a reward source is not the task's to see. Where there is none, the variable is the user's.
        inherited = {name: value for name, value in os.environ.items() if not source or name != source.key_variable}
        environment = inherited | SAFE_PATH | {"OMP_NUM_THREADS": "1"} | self.child_environment()
        family = await Family.start(command, environment, MAX_REPLY_BYTES)
        try:
            async with asyncio.timeout(_START_SECONDS):
                await family.send(self._config.model_dump_json().encode() + b"\n")
                line = await family.receive_line()
            if not line:
                raise EOFError("the environment child died")
            ready = parse_ready(line)
        except asyncio.CancelledError:
            await family.end()
            raise
        except (TimeoutError, OSError, ValueError, EOFError) as error:
            await family.end()
            raise EnvironmentNotStarted(
                f"the environment of task {self._config.name} did not start ({type(error).__name__}): its own error is"
                " in the lines above; mend the task (or its options), then start again"
            ) from error
        self.is_chat, self.template = ready.is_chat, ready.template
        self._children.add(_Child(family, ready, self._replace))
        self._changed.set()

    def _replace(self, child: _Child, detail: str) -> None:
        if child in self._ending or child not in self._children:
            return
        log.warning("environment_killed", detail=detail, rollouts=child.num_rollouts, task=self._config.name)
        self._ending.add(child)
        child.lose()
        task = asyncio.create_task(self._start_another(child))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _start_another(self, child: _Child) -> None:
        await self._end(child)
        try:
            await spawn_patiently(self._spawn, "an environment")
        except (EnvironmentNotStarted, OSError) as error:
            self._failure = error  # whoever needs a child hears of it
            self._changed.set()

    async def _end(self, child: _Child) -> None:
        await child.end()
        self._children.discard(child)
        self._ending.discard(child)


class Session:
    """One rollout's state in a child. Made by `EnvironmentPool.open`."""

    def __init__(self, pool: EnvironmentPool, child: _Child, number: int) -> None:
        self.number = number
        self._pool, self._child = pool, child

    async def reset(self, answer: object) -> Answer:
        """See `EnvironmentPool.ask`."""
        return await self._pool.ask(self._child, self.number, "reset", answer)

    async def step(self, action: str) -> Answer:
        """See `EnvironmentPool.ask`."""
        return await self._pool.ask(self._child, self.number, "step", action)


class ChildDied(Exception):
    """While a call was under way; the text says how."""


class _Child:
    """A family, with one task that writes its lines and one that reads them.

    Attributes:
        turn: held by the one call there may be of an environment that is not async.
        is_over: it takes no more calls.
    """

    def __init__(self, family: Family, ready: Ready, on_death: Callable[[_Child, str], None]) -> None:
        self.ready, self.num_rollouts, self.is_over = ready, 0, False
        self._on_death = on_death
        self.turn = asyncio.Lock()
        self._family = family
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._lines: asyncio.Queue[bytes] = asyncio.Queue()
        self._tasks = [asyncio.create_task(work) for work in (self._write(), self._read())]

    def send(self, line: bytes) -> None:
        """Soon; a cancelled caller can't tear it."""
        if not self.is_over:
            self._lines.put_nowait(line)

    async def ask(self, number: int, rollout: int, call: Call, given: object) -> Answer:
        """Raises ChildDied, or RolloutLost when the child was given up for another rollout's call."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            self.send(request_line(number, rollout, call, given))
            return await future
        finally:
            self._waiting.pop(number, None)

    def lose(self) -> None:
        """Give it up: whoever waits for an answer gets none."""
        self.is_over = True
        self._family.kill_soon()
        self._fail(RolloutLost())

    async def end(self) -> None:
        """End its family and wait for it."""
        self.is_over = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._fail(RolloutLost())
        await self._family.end()

    async def _write(self) -> None:
        try:
            while True:
                await self._family.send(await self._lines.get())
        except OSError as error:
            self._died(f"{type(error).__name__}: {error}")

    async def _read(self) -> None:
        try:
            while line := await self._family.receive_line():
                number, answer = parse_answer(line)
                if (future := self._waiting.get(number)) is not None and not future.done():
                    future.set_result(answer)
            self._died("the environment child died")
        except (OSError, ValueError) as error:
            self._died(f"{type(error).__name__}: {error}")

    def _died(self, detail: str) -> None:
        self.is_over = True
        self._fail(ChildDied(detail))
        self._on_death(self, detail)

    def _fail(self, error: Exception) -> None:
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)

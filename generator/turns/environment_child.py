"""One environment child: reads calls on stdin, writes observations on stdout, one JSON object a line.

The lines: `environment_lines`. The first one read is the task section of the config. Each rollout has a shallow copy of
the task. Async calls run side by side, each with the deadline; any other call keeps the child until it returns, and the
parent ends the child when that is late. What the environment prints goes to stderr.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TextIO

from vcppo.common.config import TaskConfig
from vcppo.common.environments.agent import SessionLost
from vcppo.common.environments.environment import Environment, Observation, checked
from vcppo.common.tasks import Split, Task, load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.prompts.chat import as_chat, template_variables
from vcppo.common.telemetry.log import inherit_logging
from vcppo.generator.turns.environment_lines import MAX_REQUEST_BYTES, Answer, Ready, answer_line, ready_line
from vcppo.generator.verifying.verifier_child import limit_memory


def main() -> None:
    """One environment process: calls in, observations out, until stdin ends. Its memory is limited."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    inherit_logging()
    config = TaskConfig.model_validate_json(sys.stdin.buffer.readline())
    limit_memory(config.verifier_memory_mib)
    task = load_task(config)
    assert isinstance(task, Environment)  # the parent has looked at its class
    task.warm_up()
    ready = Ready(is_async(task), *prompts_of(task))
    asyncio.run(Child(task, call_seconds(config, task), answers).serve(ready))


def call_seconds(config: TaskConfig, kind: Environment | type[Task]) -> float:
    """The deadline of one call: an agent's call is its whole rollout."""
    return config.max_rollout_seconds if kind.is_agent else config.verifier_timeout_seconds


def is_async(task: Environment) -> bool:
    """Whether its calls may overlap: `reset` and `step` are coroutine functions, and it does not say otherwise."""
    return task.may_overlap and all(inspect.iscoroutinefunction(method) for method in (task.reset, task.step))


def prompts_of(task: Environment) -> tuple[bool, dict[str, Any]]:
    """Whether prompts are chats, and what they give the chat template beside messages: by the first problem."""
    splits: tuple[Split, ...] = ("train", "held_out")
    split = next((each for each in splits if task.size(each) != 0), splits[0])
    prompt = problems_of(task, split, 0, 0, 1)[0].prompt
    return (False, {}) if isinstance(prompt, str) else (True, template_variables(as_chat(prompt)))


class Child:
    """Rollouts by number, and the calls that are under way."""

    def __init__(self, task: Environment, seconds: float, answers: TextIO) -> None:
        self._task, self._seconds, self._answers = task, seconds, answers
        self._rollouts: dict[int, Environment] = {}
        self._lines: list[str] = []  # that are written when the event loop comes round
        self._calls: set[asyncio.Task[None]] = set()

    async def serve(self, ready: Ready) -> None:
        """Say that it is up, then until stdin ends."""
        if (preparing := self._task.prepare()) is not None:
            await preparing
        self._answers.write(ready_line(ready))
        reader = asyncio.StreamReader(limit=MAX_REQUEST_BYTES)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := await reader.readline():
            request = json.loads(line)
            call = asyncio.create_task(self._take(request["number"], request["rollout"], request["call"], request))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _take(self, number: int, rollout: int, call: str, request: dict[str, Any]) -> None:
        if call == "close":
            await self._close(rollout)
            return
        answer = await self._answer(rollout, call, request["given"])
        if answer.fault is not None or answer.is_lost:
            await self._close(rollout)
        self._say(answer_line(number, answer))

    def _say(self, line: str) -> None:
        """Soon, and before any code of the user's. Answers of one round of the event loop go in one piece: their next
        turns are then sampled together."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._flush)
        self._lines.append(line)

    def _flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            self._answers.write("".join(lines))

    async def _answer(self, rollout: int, call: str, given: Any) -> Answer:
        try:
            if call == "reset":
                environment = self._rollouts[rollout] = copy.copy(self._task)
                await self._awaited(lambda: environment.reset(given))
                return Answer(Observation())
            environment = self._rollouts[rollout]
            return Answer(checked(await self._awaited(lambda: environment.step(given))))
        except Late:
            return Answer(Observation(), "timeout", f"{call}() took more than {self._seconds:g} s")
        except SessionLost as error:
            return Answer(Observation(), None, str(error), is_lost=True)
        except Exception as error:  # noqa: BLE001  (the user's code: whatever it raises is its crash, not ours)
            return Answer(Observation(), "crash", f"{call}(): {type(error).__name__}: {error}")

    async def _awaited(self, ask: Callable[[], Any]) -> Any:
        self._flush()
        found = ask()
        if not inspect.isawaitable(found):
            return found
        call = asyncio.ensure_future(self._coroutine(found))
        done, _ = await asyncio.wait((call,), timeout=self._seconds)
        if not done:  # not `asyncio.timeout`: a TimeoutError may be the environment's own
            call.cancel()
            raise Late
        return call.result()

    async def _coroutine(self, found: Awaitable[Any]) -> Any:
        self._flush()
        return await found

    async def _close(self, rollout: int) -> None:
        if (environment := self._rollouts.pop(rollout, None)) is None:
            return
        try:
            await self._awaited(environment.close)
        except Exception as error:  # noqa: BLE001  (as above; its rollout is over)
            sys.stderr.write(f"close(): {type(error).__name__}: {error}\n")


class Late(Exception):
    """An async call had its time."""


if __name__ == "__main__":
    main()

"""Rollouts of an environment of the package `verifiers`, in a Python that has it and need have nothing of ours.

`verifiers_agent` starts this file by its path, with the other Python. One JSON object a line, each way:

    {"environment": ID, "options": {…}}      the first line. The answer has the name `ready`, or `failed`
    {"number": N, "list": SPLIT}             its problems, one a line; the last line has the name `end`
    {"number": N, "rollout": {…}}            the answer has a reward, or a fault
    {"cancel": N}                            at once answered by {"cancelled": N}: the event loop is alive

Only the standard library and `verifiers` are imported, by any Python from 3.10 on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import importlib
import itertools
import json
import logging
import math
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any, TextIO

MAX_LINE = 1 << 24
_FAULTS: contextvars.ContextVar[list[str]] = contextvars.ContextVar("_FAULTS")
_REFUSED_BY_LIMITS = ("too_many_turns", "too_many_segments", "context_length_exceeded", "rollout_too_large")
_SAYS_NOTHING = "EmptyModelResponseError"
_LOADS = "load_environment"
_INSTALL = f"{sys.executable} -m pip install 'verifiers{{}}'"


def main() -> int:
    """Until stdin ends. The exit code is 1 when there is no such environment here."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [each for each in sys.path if os.path.abspath(each) != here] + [os.getcwd()]
    with open(0, "rb", buffering=0, closefd=False) as pipe:  # what is behind the first line stays in it
        given = json.loads(pipe.readline())
    try:
        environment = load(given["environment"], given["options"])
    except Exception as error:  # noqa: BLE001  (anybody's package: whoever started this says so)
        say(answers, {"failed": reason(error, given["environment"])})
        return 1
    asyncio.run(Server(environment, answers).serve())
    return 0


def say(answers: TextIO, line: dict[str, Any]) -> None:
    """One line."""
    answers.write(json.dumps(line) + "\n")


class Server:
    """One environment, and the rollouts that are under way.

    Args:
        environment: `Classic` or `V1`.
    """

    def __init__(self, environment: Any, answers: TextIO) -> None:
        self._environment, self._answers = environment, answers
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self) -> None:
        """Until stdin ends."""
        reader = asyncio.StreamReader(limit=MAX_LINE)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with self._environment.serving():
            say(self._answers, {"ready": True})
            while line := await reader.readline():
                self._take(json.loads(line))

    def _take(self, asked: dict[str, Any]) -> None:
        if "cancel" in asked:
            if (running := self._running.get(asked["cancel"])) is not None:
                running.cancel()
            say(self._answers, {"cancelled": asked["cancel"]})
        elif "list" in asked:
            for problem in self._environment.problems(asked["list"]):
                say(self._answers, {"number": asked["number"], "problem": problem})
            say(self._answers, {"number": asked["number"], "end": True})
        else:
            number = asked["number"]
            self._running[number] = asyncio.create_task(self._answer(number, asked["rollout"]))

    async def _answer(self, number: int, asked: dict[str, Any]) -> None:
        try:
            reward = float(await self._environment.rollout(asked))
            found: dict[str, Any] = (
                {"reward": reward} if math.isfinite(reward) else {"fault": f"its reward is {reward}"}
            )
        except Fault as error:
            found = {"fault": str(error)}
        except Exception as error:  # noqa: BLE001  (an environment may raise whatever it likes: that is its answer)
            found = {"fault": f"{type(error).__name__}: {error}"}
        finally:
            self._running.pop(number, None)
        say(self._answers, {"number": number, **found})


class Fault(Exception):
    """A rollout that has no reward; the text says why."""


class Classic:
    """An environment of ``verifiers.load_environment`` (versions below 0.4): SingleTurnEnv, ToolEnv and the like."""

    def __init__(self, verifiers: Any, name: str, options: dict[str, Any]) -> None:
        self._verifiers = verifiers
        self._environment = environment = verifiers.load_environment(name, **options)
        if environment.message_type != "chat":
            raise ValueError(f"message_type = {environment.message_type!r}: the endpoint serves chats only")
        if environment.requires_group_rollouts:
            raise ValueError("its rubric compares the rollouts of a group: a rollout is rewarded alone here")
        environment.build_dataset()
        environment.build_eval_dataset()
        found = {"train": environment.dataset, "held_out": environment.eval_dataset}
        self._rows: dict[str, Any] = {split: [] if rows is None else rows for split, rows in found.items()}
        self._client: Any = None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """While rollouts are played."""
        self._client = importlib.import_module("openai").AsyncOpenAI(
            base_url="http://127.0.0.1", api_key="unset", max_retries=0, timeout=None
        )
        yield

    def problems(self, split: str) -> Iterator[dict[str, Any]]:
        """What is shown of a split. The environment's own evaluation data are held out; it need not have any."""
        tools = [_tool(each) for each in self._environment.tool_defs or []]
        for row in self._rows[split]:
            prompt = [_message(each) for each in row["prompt"]]
            yield {"prompt": prompt, "tools": tools, "answer": str(row.get("answer") or "")}

    async def rollout(self, asked: dict[str, Any]) -> float:
        """One, and what its rubric says. Raises Fault."""
        faults: list[str] = []
        _FAULTS.set(faults)
        native = self._client.with_options(base_url=asked["base_url"], api_key=asked["api_key"])
        client = self._verifiers.OpenAIChatCompletionsClient(native)
        row = dict(self._rows[asked["split"]][asked["row"]])
        state = await self._environment.rollout(row, client, asked["model"], {})
        await self._environment.rubric.score_rollout(state)
        await self._environment.rubric.cleanup(state)
        if (error := state.get("error")) is not None and not is_the_policys(error):
            raise Fault(f"{type(error).__name__}: {error}")
        if faults:
            raise Fault(faults[0])
        return float(state["reward"])


class V1:
    """A taskset of ``verifiers.v1``, played by one agent. All its tasks are for training: it knows no other split."""

    def __init__(self, v1: Any, name: str, options: dict[str, Any]) -> None:
        self._v1 = v1
        loaders = importlib.import_module("verifiers.v1.utils.loaders")
        taskset = {**options.get("taskset", {}), "id": name}
        self._environment = v1.load_environment(loaders.resolve_env_config({**options, "taskset": taskset}))
        if not self._environment.taskset.bounded:
            raise ValueError("it has tasks without end: bound it by its own options")
        self._tasks = list(self._environment.taskset)
        self._numbers = itertools.count()

    def serving(self) -> Any:
        """While rollouts are played."""
        return self._environment.serving()

    def problems(self, split: str) -> Iterator[dict[str, Any]]:
        """What is shown of a split."""
        for task in self._tasks if split == "train" else []:
            data = task.data
            prompt = data.prompt if isinstance(data.prompt, list) else [{"role": "user", "content": data.prompt or ""}]
            system = [{"role": "system", "content": data.system_prompt}] if data.system_prompt else []
            yield {"prompt": [*system, *map(_message, prompt)], "tools": [], "answer": ""}

    async def rollout(self, asked: dict[str, Any]) -> float:
        """One, and what its task says. Raises Fault."""
        variable = f"VCPPO_SESSION_{next(self._numbers)}"  # its client takes a key from there only
        os.environ[variable] = asked["api_key"]
        try:
            client = self._v1.EvalClientConfig(base_url=asked["base_url"], api_key_var=variable)
            context = self._v1.ModelContext(model=asked["model"], client=client)
            episode = await self._environment.run_episode(self._tasks[asked["row"]], context)
        finally:
            del os.environ[variable]
        errors = [*episode.errors, *(error for trace in episode.traces for error in trace.errors)]
        if others := [each for each in errors if not any(code in each.message for code in _REFUSED_BY_LIMITS)]:
            raise Fault(f"{others[0].type}: {others[0].message}")
        if len(episode.traces) != 1:
            raise Fault(f"{len(episode.traces)} agents have played: one can be trained")
        return float(episode.traces[0].reward)


def load(name: str, options: dict[str, Any]) -> Classic | V1:
    """The environment, by whichever of the package's two interfaces it is written for."""
    found = importlib.import_module("verifiers")
    if not _is_classic(name):
        return V1(importlib.import_module("verifiers.v1"), name, options)
    if not hasattr(found, _LOADS):
        raise ValueError(
            f"it has {_LOADS}, which verifiers {found.__version__} knows no more: {_INSTALL.format('>=0.3,<0.4')}"
        )
    for logger in ("verifiers", "verifiers.legacy"):  # it has set its own logging up; one may not reach the other
        logging.getLogger(logger).addHandler(_Listener(logging.ERROR))
    return Classic(found, name, options)


def _is_classic(name: str) -> bool:
    """Whether the environment's module loads it by itself."""
    module = name.split("@")[0].split("/")[-1].replace("-", "_")
    try:
        return hasattr(importlib.import_module(module), _LOADS)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        return False  # one of the package's own, or none: `verifiers.v1` says so


def is_the_policys(error: BaseException) -> bool:
    """Whether a rollout ended by what the policy said, or by a limit of the run: its reward counts then."""
    if type(error).__name__ == _SAYS_NOTHING:
        return True
    seen: BaseException | None = error
    while seen is not None:
        if getattr(seen, "code", None) in _REFUSED_BY_LIMITS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _message(message: Any) -> dict[str, Any]:
    found = dict(message) if isinstance(message, dict) else message.model_dump()
    if not isinstance(found.get("content"), str):
        raise ValueError(f"a message of role {found.get('role')} has a content that is no text: only text can be asked")
    return {"role": found["role"], "content": found["content"]}


def _tool(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def reason(error: BaseException, name: str) -> str:
    """Why there is no environment, and what to do."""
    if isinstance(error, ImportError) and error.name == "verifiers":
        return f"{error}, in {sys.executable}: {_INSTALL.format('')}"
    return f"the environment {name!r} can't be used ({type(error).__name__}: {error})"


class _Listener(logging.Handler):
    """A rubric logs what its functions raise, and counts it as 0. Here it is the rollout's fault."""

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if text.startswith("Error calling") and (faults := _FAULTS.get(None)) is not None:
            faults.append(text)


if __name__ == "__main__":
    sys.exit(main())

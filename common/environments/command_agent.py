"""An agent that is a program: it gets a problem on its stdin and the endpoint in its environment, and prints a reward.

    stdin     {"prompt": "…" or [{"role": "user", "content": "…"}], "answer": {…}}      one line
    stdout    anything; the last line is the reward: 0.5, or {"reward": 0.5, "outcome": "wrong"}

``OPENAI_BASE_URL`` and ``OPENAI_API_KEY`` are set, where OpenAI's client looks by itself, and ``OPENAI_MODEL``. The
program is ended with everything it has started when its rollout is over.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from vcppo.common.config import TaskConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.inner_task import AsksOfInnerTask
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.process.family import Family
from vcppo.common.tasks import load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import (
    Chat,
    Problem,
    Split,
    TaskError,
    TaskOptions,
    Verdict,
    parse_options,
)
from vcppo.common.text.yaml_text import one_line
from vcppo.common.user_modules import SAFE_PATH

_MAX_LINE = 1 << 20
_MAX_LINES = 100_000


class CommandAgentOptions(TaskOptions):
    """``task.options`` of command_agent."""

    command: list[str] = Field(min_length=1)
    """The program and its arguments. It runs in the folder that vcppo was started in."""

    problems: str
    """The task that has the problems: a built-in one, or module:Class."""

    options: dict[str, object] = Field(default_factory=dict)
    """As task.options of that task."""


class CommandAgent(AsksOfInnerTask, Agent):
    """See the module's text. Options: `CommandAgentOptions`."""

    def __init__(self, **options: object) -> None:
        found = parse_options(CommandAgentOptions, options, "task.options")
        self._command = found.command
        self._inner = load_task(TaskConfig(name=found.problems, options=found.options))
        if self._inner.is_agent:
            raise TaskError(f"task.options.problems = {found.problems!r}: an agent itself: name a task of problems")
        self.judged_by = [*self._inner.judged_by, *([found.problems] if ":" in found.problems else [])]

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`."""
        found = problems_of(self._inner, split, seed, start, count)
        return [Problem(each.prompt, {"prompt": _shown(each), "answer": each.answer}) for each in found]

    async def run(self, answer: Mapping[str, object], endpoint: Endpoint) -> float | Verdict:
        """See `Agent.run`."""
        inherited = {name: value for name, value in os.environ.items() if name not in SAFE_PATH}
        own = {"OPENAI_BASE_URL": endpoint.base_url, "OPENAI_API_KEY": endpoint.api_key, "OPENAI_MODEL": endpoint.model}
        family = await Family.start(self._command, inherited | own, _MAX_LINE)
        try:
            await family.send(problem_line(answer))
            last = b""
            for _ in range(_MAX_LINES):
                if not (line := await family.receive_line()):
                    return read_reward(last)
                last = line if line.strip() else last
            raise ValueError(f"the program wrote more than {_MAX_LINES:,} lines")
        finally:
            await family.end()


def problem_line(answer: Mapping[str, object]) -> bytes:
    """What the program reads."""
    return json.dumps(answer).encode() + b"\n"


def read_reward(line: bytes) -> float | Verdict:
    """The program's last line. ValueError when it is no reward."""
    try:
        found: Any = parse_json(line)
    except JsonError:
        found = None
    if isinstance(found, dict) and found.keys() <= {"reward", "outcome"} and "reward" in found:
        return Verdict(found["outcome"], None, found["reward"]) if "outcome" in found else found["reward"]
    if isinstance(found, int | float):
        return found
    raise ValueError(f"the program's last line is no reward: {one_line(line.decode(errors='replace'), 80)!r}")


def _shown(problem: Problem) -> object:
    return problem.prompt.messages if isinstance(problem.prompt, Chat) else problem.prompt

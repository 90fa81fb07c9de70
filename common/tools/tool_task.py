"""Questions of any task of one turn, answered with tools: the policy calls, is told, and answers when it knows.

    task:
      name: tools
      max_turns: 6
      options:
        task: {name: dataset, options: {path: problems.jsonl}}
        tools: [{use: calculator}]

A turn with a call gets the calls' results as messages of role ``tool``. The first turn without a call is the answer:
the task of the questions judges it. docs/tools.md is the page about it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from vcppo.common.config import TaskConfig
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.environments.inner_task import AsksOfInnerTask
from vcppo.common.tasks import load_task
from vcppo.common.tasks.asking import demonstrations_of, problems_of
from vcppo.common.tasks.interface import (
    Chat,
    Demonstration,
    Problem,
    Split,
    Task,
    TaskError,
    TaskOptions,
    Text,
    Verdict,
    parse_options,
)
from vcppo.common.tasks.prompts.chat import as_chat
from vcppo.common.tools.call_formats import CallFormat, calls_in
from vcppo.common.tools.tool_options import make_tools
from vcppo.common.tools.toolbox import Toolbox, ToolLimits

_MAX_OUTPUT = 15_000  # sixteen of them are one observation


class Questions(TaskOptions):
    """The task that the questions are of."""

    name: str
    """A built-in task of one turn or module:Class, as task.name."""

    options: dict[str, object] = Field(default_factory=dict)
    """As task.options of that task."""


class ToolTaskOptions(TaskOptions):
    """``task.options`` of tools."""

    task: Questions
    """Whose questions are asked, and who judges the answers."""

    tools: list[dict[str, Any]] = Field(min_length=1, max_length=64)
    """Which tools there are: each a mapping with `use` and that tool's options."""

    call_format: CallFormat = "hermes"
    """How the model writes calls: hermes (Qwen and most others) or llama (Llama 3.1 and later)."""

    max_calls: int = Field(default=8, ge=1, le=16)
    """Calls of one turn."""

    call_seconds: float = Field(default=3.0, gt=0)
    """Time for all calls of one turn. Keep it below task.verifier_timeout_seconds."""

    max_output: int = Field(default=4096, ge=1, le=_MAX_OUTPUT)
    """Characters of one result."""

    reward_correct: float = 1.0
    """Reward of a correct answer."""

    reward_wrong: float = 0.0
    """Reward of any other answer. A rollout that is cut has given none, and gets 0."""

    error_cost: float = Field(default=0.0, ge=0)
    """Taken from the reward of a turn for each of its calls that came to nothing."""

    end_of_thinking: str = "</think>"
    """Calls in front of the last of these in a turn are thoughts, and not run."""

    overlap: bool | None = None
    """Run calls of several rollouts side by side in one child. null: unless a tool or the questions' task may wait
    without being async (`python`, functions of yours that are not async, `code`)."""


class ToolTask(AsksOfInnerTask, Environment):
    """See the module's text. Options: `ToolTaskOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = given = parse_options(ToolTaskOptions, options, "task.options")
        self._inner = _questions(given.task)
        own = [name for name in (given.task.name, *(each.get("use") for each in given.tools)) if ":" in str(name)]
        self.judged_by = [*self._inner.judged_by, *map(str, own)]
        tools = make_tools(given.tools)
        self._toolbox = Toolbox(tools, ToolLimits(given.call_seconds, given.max_output))
        blocks = any(tool.keeps_its_child for tool in tools) or given.task.name == "code"
        self.may_overlap = not blocks if given.overlap is None else given.overlap
        self._answer: Mapping[str, object] = {}

    async def prepare(self) -> None:
        """See `Environment.prepare`: servers of tools are started."""
        await self._toolbox.connect()

    async def reset(self, answer: Mapping[str, object]) -> None:
        """See `Environment.reset`."""
        self._answer = answer

    async def step(self, action: str) -> Observation:
        """Run the turn's calls, or judge the answer."""
        options = self.options
        behind = action.rpartition(options.end_of_thinking)[2] if options.end_of_thinking else action
        calls = calls_in(behind, options.call_format, options.max_calls)
        if not calls:
            verdict = self._inner.verify(self._answer, action, "stop")
            return Observation(reward=self._reward(verdict), done=True, outcome=verdict.outcome)
        messages, use = await self._toolbox.run(calls)
        return Observation(messages, 0.0 - options.error_cost * use.errors, tools=use)

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """The questions, each with the tools for the model's chat template."""
        found = problems_of(self._inner, split, seed, start, count)
        return [Problem(self._with_tools(each.prompt), each.answer) for each in found]

    def warm_up(self) -> None:
        """The questions' task's, and all tools are made ready."""
        self._inner.warm_up()
        self._toolbox.open()

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
        """The questions' task's, with the tools in their prompts: it shows calls by itself."""
        found = demonstrations_of(self._inner, seed, count, style)
        return [Demonstration(self._with_tools(each.prompt), each.response) for each in found]

    def chat_template(self) -> str | None:
        """See `Task.chat_template`."""
        return self._inner.chat_template()

    def _with_tools(self, prompt: Text) -> Chat:
        if isinstance(prompt, str):
            raise TaskError(
                f"task.options.task: {self.options.task.name} gives plain text, and tools are told through the model's "
                "chat template: take prompt_template out, or let problems() give chat messages"
            )
        chat = as_chat(prompt)
        if chat.tools:
            raise TaskError(
                "task.options.task: its prompts bring tools of their own, which nothing here can run: take "
                "task.options.task.options.tools or tools_column out"
            )
        return chat._replace(tools=self._toolbox.schemas)

    def _reward(self, verdict: Verdict) -> float:
        if verdict.reward is not None:
            return verdict.reward
        return self.options.reward_correct if verdict.outcome == "correct" else self.options.reward_wrong


def _questions(given: Questions) -> Task:
    found = load_task(TaskConfig(name=given.name, options=given.options))
    if found.is_environment:
        raise TaskError(f"task.options.task: {given.name} is an environment itself: name a task of one turn")
    return found

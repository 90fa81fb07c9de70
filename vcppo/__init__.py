"""vcppo: asynchronous PPO with a calibrated critic. The names here are the public API; everything else may move.

A task of your own, in a file beside your run.yaml (``task.name: my_task:Double``)::

    from vcppo import Problem, Task, Verdict

    class Double(Task):
        def problems(self, split, seed, start, count):  # a part of an endless sequence, the same at every call
            numbers = [2 * i + (split == "held_out") for i in range(start, start + count)]
            return [Problem(f"{n} + {n} =", {"sum": str(2 * n)}) for n in numbers]

        def verify(self, answer, response, finish_reason):  # in a child process that is killed at a deadline
            found = response.strip()
            return Verdict("correct" if found == answer["sum"] else "wrong", found)

| name | what it is |
|---|---|
| `Task` | where prompts and verdicts come from: the class a user writes |
| `Environment`, `Observation` | a task of several turns, and what its `step` returns |
| `Agent`, `Endpoint` | a task of a program that asks the policy itself, and where it asks |
| `Problem`, `Verdict`, `Demonstration`, `Finding` | what its methods return |
| `TaskOptions`, `parse_options` | typed options of a task; a wrong one is refused with its name |
| `Chat` | a prompt of chat messages with tools, or with variables for the chat template |
| `Tool`, `ToolError`, `ToolUse` | a tool of your own, what its call raises, and the figures of calls |
| `Split`, `Text`, `ChatMessages`, `FinishReason`, `Outcome` | the types in its signatures |
| `load_task` | the task that a config names |
| `load_config`, `VcppoConfig` | a run's settings from YAML and overrides, checked |
| `VcppoError`, `TaskError` | errors whose text is meant for the user |
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig, load_config
    from vcppo.common.environments.agent import Agent, Endpoint
    from vcppo.common.environments.environment import Environment, Observation, ToolUse
    from vcppo.common.errors import VcppoError
    from vcppo.common.records.outcomes import FinishReason, Outcome
    from vcppo.common.tasks import load_task
    from vcppo.common.tasks.interface import (
        Chat,
        ChatMessages,
        Demonstration,
        Finding,
        Problem,
        Split,
        Task,
        TaskError,
        TaskOptions,
        Text,
        Verdict,
        parse_options,
    )
    from vcppo.common.tools.tool import Tool, ToolError

__version__ = "0.2.0"
__all__ = [
    "Agent",
    "Chat",
    "ChatMessages",
    "Demonstration",
    "Endpoint",
    "Environment",
    "Finding",
    "FinishReason",
    "Observation",
    "Outcome",
    "Problem",
    "Split",
    "Task",
    "TaskError",
    "TaskOptions",
    "Text",
    "Tool",
    "ToolError",
    "ToolUse",
    "VcppoConfig",
    "VcppoError",
    "Verdict",
    "load_config",
    "load_task",
    "parse_options",
]

_HOMES = {
    "Agent": "vcppo.common.environments.agent",
    "Endpoint": "vcppo.common.environments.agent",
    "Environment": "vcppo.common.environments.environment",
    "Observation": "vcppo.common.environments.environment",
    "Tool": "vcppo.common.tools.tool",
    "ToolError": "vcppo.common.tools.tool",
    "ToolUse": "vcppo.common.environments.environment",
    "FinishReason": "vcppo.common.records.outcomes",
    "Outcome": "vcppo.common.records.outcomes",
    "VcppoConfig": "vcppo.common.config",
    "VcppoError": "vcppo.common.errors",
    "load_config": "vcppo.common.config",
    "load_task": "vcppo.common.tasks",
}


def __getattr__(name: str) -> Any:
    """Names are looked up when they are used: a child process of ours that needs none starts without them."""
    if name not in __all__:
        raise AttributeError(f"module 'vcppo' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOMES.get(name, "vcppo.common.tasks.interface")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]

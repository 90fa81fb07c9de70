"""Asking a task: what it answers is looked at, and what it raises is told as the task's own fault.

A task is a user's code. When it raises, gives fewer problems than were asked for, or something else than problems, then
starting the process again would end the same way: `TaskError` says which task, which numbers, where, and what to do.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vcppo.common.tasks.interface import Chat, Demonstration, Problem, Split, Task, TaskError
from vcppo.common.tasks.prompts.chat import reserved

_REMEDY = "correct the task, then start again: the run goes on where it is"


def problems_of(task: Task, split: Split, seed: int, start: int, count: int) -> list[Problem]:
    """``task.problems(split, seed, start, count)``, checked.

    Raises:
        TaskError: it raised, or its answer is not `count` problems.
    """
    call = f"{_name(task)}.problems({split!r}, seed={seed}, start={start}, count={count})"
    found = _asked(call, lambda: task.problems(split, seed, start, count))
    if len(found) != count:
        raise TaskError(f"{call} gave {len(found)} problems instead of {count}: {_SEQUENCE}; {_REMEDY}")
    for number, problem in enumerate(found, start):
        if fault := _fault_of(problem):
            raise TaskError(f"{call}: problem {number} ({_place(task, split, seed, number)}) {fault}; {_REMEDY}")
    return list(found)


_SEQUENCE = "the sequence has no end, a finite data set starts over, and `num_problems` says how many differ"


def demonstrations_of(task: Task, seed: int, count: int, style: Mapping[str, object]) -> list[Demonstration]:
    """``task.demonstrations(seed, count, style)``, checked.

    Raises:
        TaskError: it has none, it raised, or its answer is not `count` demonstrations.
    """
    call = f"{_name(task)}.demonstrations(seed={seed}, count={count}, style={dict(style)!r})"
    found = _asked(call, lambda: task.demonstrations(seed, count, style))
    if len(found) != count:
        raise TaskError(f"{call} gave {len(found)} demonstrations instead of {count}; {_REMEDY}")
    for number, each in enumerate(found):
        if fault := _fault_of_demonstration(each):
            raise TaskError(f"{call}: demonstration {number} {fault}; {_REMEDY}")
    return list(found)


def _asked(call: str, ask: Callable[[], Any]) -> Sequence[Any]:
    try:
        found = ask()
    except TaskError:
        raise
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        at = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        raise TaskError(f"{call} raised {type(error).__name__}: {error}{at}; {_REMEDY}") from error
    if not isinstance(found, list | tuple):
        raise TaskError(f"{call} gave a {type(found).__name__} instead of a list; {_REMEDY}")
    return found


def _fault_of(problem: object) -> str:
    if not isinstance(problem, Problem):
        return f"is a {type(problem).__name__}, no Problem"
    if fault := _fault_of_prompt(problem.prompt):
        return fault
    answer: Any = problem.answer  # whatever the user gave
    if not isinstance(answer, dict):
        return f"has an answer that is a {type(answer).__name__}, not a dict"
    try:
        json.dumps(answer)
    except (TypeError, ValueError, RecursionError) as error:
        return f"has an answer that can't be sent to a verifier as JSON ({error})"
    return ""


def _fault_of_demonstration(each: object) -> str:
    if not isinstance(each, Demonstration):
        return f"is a {type(each).__name__}, no Demonstration"
    response: Any = each.response  # whatever the user gave
    if not isinstance(response, str):
        return f"has a response that is a {type(response).__name__}, not text"
    return _fault_of_prompt(each.prompt)


def _fault_of_prompt(prompt: object) -> str:
    if isinstance(prompt, str):
        return "" if prompt else "has an empty prompt"
    if isinstance(prompt, Chat):
        return _fault_of_prompt(prompt.messages) or _fault_of_extras(prompt.tools, prompt.template_kwargs)
    if not isinstance(prompt, list) or not prompt:
        return f"has a prompt that is a {type(prompt).__name__}, not text or chat messages"
    for message in prompt:
        is_message = isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        if not is_message:
            return f"has a chat message without a role and a content of text: {str(message)[:80]!r}"
    return ""


def _fault_of_extras(tools: Any, template_kwargs: Any) -> str:
    """Of `Chat.tools` and `Chat.template_kwargs`: whatever the user gave."""
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, dict) for tool in tools)):
        return f"has tools that are no list of dicts: {str(tools)[:80]!r}"
    if template_kwargs is None:
        return ""
    if not isinstance(template_kwargs, dict) or not all(isinstance(name, str) for name in template_kwargs):
        return f"has template_kwargs that are no dict of names: {str(template_kwargs)[:80]!r}"
    if names := reserved(list(template_kwargs)):
        return f"has template_kwargs that can't be set: {', '.join(names)}"
    return ""


def _name(task: Task) -> str:
    kind = type(task)
    return f"{kind.__module__}:{kind.__qualname__}"


def _place(task: Task, split: Split, seed: int, number: int) -> str:
    try:
        return str(task.where(split, seed, number))
    except Exception:  # noqa: BLE001  (the task's own code, asked for nothing but a better message)
        return f"number {number}"

"""Reward functions of the user's module: ``task.rewards: [{name: my_rewards:brevity, weight: 0.1}]``.

A function takes what `vcppo.Task.verify` takes, (answer, response, finish_reason), and returns a number. One that has a
parameter ``messages`` gets the whole conversation by that name. It runs in the verifier's child, after `verify`, within
the same deadline. A task of several turns has a child for it, and the response is all that the policy wrote.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.user_modules import IMPORTABLE, import_named

RewardFunction = Callable[..., Any]
"""(answer, response, finish_reason) or (answer, response, finish_reason, messages=…) to a number."""
_MESSAGES = "messages"


class RewardError(VcppoError):
    """A reward function that can't be loaded; the text names it and the remedy."""

    exit_code = EXIT_USAGE


def component_of(name: str) -> str:
    """The component that ``module:function`` gives: the function's name."""
    return name.rpartition(":")[2]


def load_reward_functions(names: Iterable[str]) -> dict[str, RewardFunction]:
    """Functions by component. Raises RewardError for the first that can't be loaded or called."""
    return {component_of(name): _load(name) for name in names}


def value_of(
    function: RewardFunction,
    answer: Mapping[str, object],
    response: str,
    finish_reason: FinishReason,
    messages: Sequence[Mapping[str, Any]],
) -> Any:
    """What the function says; it gets the messages where it asks for them."""
    if _asks_for_messages(function):
        return function(answer, response, finish_reason, messages=messages)
    return function(answer, response, finish_reason)


def _asks_for_messages(function: RewardFunction) -> bool:
    try:
        return _MESSAGES in inspect.signature(function).parameters
    except ValueError:  # a built-in without a signature
        return False


def _load(name: str) -> RewardFunction:
    where = f"task.rewards: {name}"
    try:
        function = import_named(name)
    except Exception as error:  # importing runs the user's code, which raises whatever it likes
        raise RewardError(f"{where} can't be imported: {type(error).__name__}: {error}; {IMPORTABLE}") from error
    if not callable(function) or inspect.isclass(function):
        raise RewardError(f"{where} is a {type(function).__name__}, not a function: name a function of the module")
    if inspect.iscoroutinefunction(function):
        raise RewardError(f"{where} is async: give a plain function, it has a process of its own")
    try:
        more: dict[str, Any] = {_MESSAGES: []} if _asks_for_messages(function) else {}
        inspect.signature(function).bind({}, "", "stop", **more)
    except TypeError as error:
        raise RewardError(
            f"{where} takes {inspect.signature(function)}: it must take (answer, response, finish_reason), and"
            " messages if it likes"
        ) from error
    except ValueError:  # a built-in without a signature: a call will tell
        pass
    found: RewardFunction = function
    return found

"""Reward functions of the user's module: ``task.rewards: [{name: my_rewards:brevity, weight: 0.1}]``.

A function takes what `vcppo.Task.verify` takes, (answer, response, finish_reason), and returns a number. It runs in the
verifier's child, after `verify`, within the same deadline.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.user_modules import IMPORTABLE, import_named

RewardFunction = Callable[[Mapping[str, object], str, FinishReason], Any]


class RewardError(VcppoError):
    """A reward function that can't be loaded; the text names it and the remedy."""

    exit_code = EXIT_USAGE


def component_of(name: str) -> str:
    """The component that ``module:function`` gives: the function's name."""
    return name.rpartition(":")[2]


def load_reward_functions(names: Iterable[str]) -> dict[str, RewardFunction]:
    """Functions by component. Raises RewardError for the first that can't be loaded or called."""
    return {component_of(name): _load(name) for name in names}


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
        inspect.signature(function).bind({}, "", "stop")
    except TypeError as error:
        raise RewardError(
            f"{where} takes {inspect.signature(function)}: it must take (answer, response, finish_reason)"
        ) from error
    except ValueError:  # a built-in without a signature: a call will tell
        pass
    found: RewardFunction = function
    return found

"""What must hold between the settings that make a reward. Each line names fields, values and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from vcppo.common.config.reward_sources import source_problems
from vcppo.common.records.trajectory import DEFAULT_LIMITS
from vcppo.common.rewards.reward_functions import component_of
from vcppo.common.rewards.reward_parts import FORMAT, RESERVED, is_name

if TYPE_CHECKING:
    from vcppo.common.config.tree import VcppoConfig

_ROUNDING = 1e-9


def reward_problems(config: VcppoConfig) -> Iterator[str]:
    """Yield one line per contradiction."""
    task = config.task
    for name, reward in (("reward_correct", task.reward_correct), ("reward_wrong", task.reward_wrong)):
        if abs(reward) > DEFAULT_LIMITS.max_reward:
            limit = f"the buffer accepts none beyond {DEFAULT_LIMITS.max_reward:g}"
            yield f"task.{name} = {reward:g}: {limit}: use a smaller one, the paper's are 1 and -1"
    if task.reward_correct <= task.reward_wrong:
        yield (
            f"task.reward_correct = {task.reward_correct:g}: must be above task.reward_wrong = {task.reward_wrong:g}:"
            " the paper's are 1 and -1"
        )
    named = [*_name_problems(config)]
    yield from named
    yield from _length_problems(config)
    yield from source_problems(task.reward_service, task.judge)
    if not named:
        yield from _range_problems(config)


def _name_problems(config: VcppoConfig) -> Iterator[str]:
    task, seen = config.task, set[str]()
    for name in task.reward_weights:
        if not is_name(name) or name in RESERVED:
            yield f"task.reward_weights.{name}: {_no_component(name)}"
    for each in task.rewards:
        module, colon, function = each.name.partition(":")
        if not colon or not all(part.isidentifier() for part in module.split(".")) or not is_name(function):
            yield f"task.rewards: {each.name!r} is not of the form module:function: name a function of your module"
            continue
        component = component_of(each.name)
        if component in RESERVED:
            yield f"task.rewards: {each.name}: {_no_component(component)}"
        if component in seen:
            yield f"task.rewards: {each.name}: another function gives component {component!r} already: rename one"
        seen.add(component)
        if component in task.reward_weights:
            yield (
                f"task.reward_weights.{component} = {task.reward_weights[component]:g}: the weight of {each.name}"
                " stands in task.rewards: leave one of the two out"
            )
    if FORMAT in seen and task.format_pattern is not None:
        yield f"task.format_pattern = {task.format_pattern}: a function of task.rewards gives {FORMAT!r} too: rename it"


def _no_component(name: str) -> str:
    if name in RESERVED:
        return f"{name!r} is a name of vcppo's own: choose another"
    return "no component can have that name: use letters, digits and _, a letter first"


def _length_problems(config: VcppoConfig) -> Iterator[str]:
    task, most = config.task, config.sampling.max_response_tokens
    if task.soft_overlong_cache > most:
        yield (
            f"task.soft_overlong_cache = {task.soft_overlong_cache}: more than sampling.max_response_tokens = {most}:"
            f" set it to {most} or less; DAPO's is a fifth"
        )
    default = type(task)().soft_overlong_penalty
    if task.soft_overlong_penalty != default and not task.soft_overlong_cache:
        yield (
            f"task.soft_overlong_penalty = {task.soft_overlong_penalty:g}: has no effect with"
            " task.soft_overlong_cache = 0: set that above 0, or leave task.soft_overlong_penalty out"
        )


def _range_problems(config: VcppoConfig) -> Iterator[str]:
    """What outcome, format and length make must be a reward: a crash has one too, and it is trained."""
    task, rule, largest = config.task, config.reward_rule, DEFAULT_LIMITS.max_reward
    if max(abs(rule.low), abs(rule.high)) > largest:
        yield (
            f"task.reward_range: rewards from {rule.low:g} to {rule.high:g} are possible, and the buffer accepts none"
            f" beyond {largest:g}: set it, or use smaller rewards, weights and costs"
        )
    if task.reward_range is None:
        return
    least, greatest = task.known_rewards(config.sampling.max_response_tokens)
    low, high = task.reward_range
    if low > least + _ROUNDING * max(1.0, abs(least)) or high < greatest - _ROUNDING * max(1.0, abs(greatest)):
        yield (
            f"task.reward_range = [{low:g}, {high:g}]: rewards from {least:g} to {greatest:g} are possible by outcome,"
            f" format and length alone: set it to [{min(low, least):.12g}, {max(high, greatest):.12g}], or leave it out"
        )

"""Checks of the config alone."""

from __future__ import annotations

from collections.abc import Iterator

from vcppo.common.check.check_lines import Result, failed, passed, warned
from vcppo.common.config import TaskConfig, config_warnings
from vcppo.common.files.secret_file import read_secret
from vcppo.common.rewards.reward_functions import RewardError, component_of, load_reward_functions
from vcppo.common.rewards.reward_parts import SOURCE
from vcppo.common.rewards.reward_rule import RewardRule
from vcppo.common.trackers.wanted import missing_trackers, wanted_trackers
from vcppo.deploy.check.machine import Setup


def warnings(setup: Setup) -> Iterator[Result]:
    """Settings that work but are probably not meant."""
    found = list(config_warnings(setup.config))
    for text in found:
        yield warned(text, "")
    if not found:
        yield passed("loads; no setting contradicts another")


def rewards(setup: Setup) -> Result:
    """What a response can earn; functions of the user's module are loaded, the key of a reward source is read."""
    config, rule = setup.config, setup.config.reward_rule
    try:
        load_reward_functions(each.name for each in config.task.rewards)
    except RewardError as error:
        return failed(str(error), "mend the module, or task.rewards")
    if (source := config.task.reward_source) is not None and source.key_file is not None:
        read_secret(f"{config.task.reward_source_name}.key_file", source.key_file)
    text = f"correct {rule.correct:g}, anything else {rule.wrong:g}{_parts(config.task)}"
    if source is not None:
        name = config.task.reward_source_name
        where = f"{name}.url = {source.url}"
        text = (
            f"{text}; {SOURCE} from {where}"
            if SOURCE in config.task.reward_weights
            else f"numbers from {where}; a crash {rule.wrong:g}{_parts(config.task)}"
        )
    if (rule.low, rule.high) != (rule.wrong, rule.correct):
        text += f"; from {rule.low:g} to {rule.high:g}"
    if config.algorithm.has_critic and rule.low + rule.high != 0:
        middle = (rule.low + rule.high) / 2
        start = 0.0 if config.critic.head == "scalar" else sum(config.critic.value_range((rule.low, rule.high))) / 2
        return passed(f"{text}; a new critic starts at {start:g}, the middle of {_ends(rule)} is {middle:g}")
    return passed(text)


def trackers(setup: Setup) -> Iterator[Result]:
    """Whether the trackers that ``metrics`` names are installed."""
    missing = [failed(text, remedy) for text, remedy in missing_trackers(setup.config)]
    found = ", ".join(map(str, wanted_trackers(setup.config)))
    yield from missing or [passed(found or "none: metrics stay in the run folder")]


def _parts(task: TaskConfig) -> str:
    """What is added to the two: `` + 0.2 format + 0.1 brevity, soft overlong penalty up to 1``."""
    weights = task.reward_weights | {component_of(each.name): each.weight for each in task.rewards}
    text = "".join(f" {'-' if weight < 0 else '+'} {abs(weight):g} {name}" for name, weight in weights.items())
    if task.soft_overlong_cache:
        text += f", soft overlong penalty up to {task.soft_overlong_penalty:g}"
    return text + (f", {task.length_cost:g} a token" if task.length_cost else "")


def _ends(rule: RewardRule) -> str:
    return "the two" if (rule.low, rule.high) == (rule.wrong, rule.correct) else "the range"

"""Checks of the config alone."""

from __future__ import annotations

from collections.abc import Iterator

from vcppo.common.check.check_lines import Result, passed, warned
from vcppo.common.config import config_warnings
from vcppo.deploy.check.machine import Setup


def warnings(setup: Setup) -> Iterator[Result]:
    """Settings that work but are probably not meant."""
    found = list(config_warnings(setup.config))
    for text in found:
        yield warned(text, "")
    if not found:
        yield passed("loads; no setting contradicts another")


def rewards(setup: Setup) -> Result:
    """What a response can earn."""
    task = setup.config.task
    text = f"correct {task.reward_correct:g}, anything else {task.reward_wrong:g}"
    if setup.config.algorithm.advantage_estimator == "gae" and task.reward_correct + task.reward_wrong != 0:
        middle = (task.reward_correct + task.reward_wrong) / 2
        return passed(f"{text}; a new critic starts at 0, the middle of the two is {middle:g}")
    return passed(text)

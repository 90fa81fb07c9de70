"""Checks of the config alone."""

from __future__ import annotations

import math
from collections.abc import Iterator

from common.check_lines import Result, passed, warned
from common.config import config_warnings
from deploy.check.machine import Setup

Z_95 = 1.959964
_WIDE = 0.05  # half-width of pass@1's interval from which on an evaluation can't tell small gains


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


def evaluation(setup: Setup) -> Result:
    """How wide the interval of a held-out accuracy will be."""
    settings = setup.config.eval
    half = half_width(settings.num_problems)
    text = (
        f"eval.num_problems = {settings.num_problems} held-out problems (or all, where there are fewer): pass@1 to"
        f" within ±{100 * half:.1f} points (95 %)"
    )
    if half > _WIDE:
        wanted = math.ceil((Z_95 * 0.5 / _WIDE) ** 2)
        return warned(text, f"smaller gains than that can't be told from chance: set eval.num_problems={wanted}")
    return passed(text)


def half_width(num_problems: int) -> float:
    """Half of a 95 % interval of a proportion near 1/2, where it is widest; one sample a problem."""
    return Z_95 * 0.5 / math.sqrt(num_problems)

"""The parts of a reward: their names, and which numbers they may be. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from numbers import Real

from vcppo.common.records.trajectory import DEFAULT_LIMITS

BASE = "base"
"""The verdict's own number, where it gives one."""
FORMAT = "format"
"""1 where ``task.format_pattern`` is found in the response, 0 where not; the task's own part where that is not set."""
SOURCE = "source"
"""The number that a service or a judge gives in a task of several turns. With one turn it is the base."""
SOFT_OVERLONG = "soft_overlong"
LENGTH_COST = "length_cost"
SHAPING = (SOFT_OVERLONG, LENGTH_COST)
"""Parts that the rule makes from the length; each is named as its setting."""
RESERVED = frozenset((BASE, *SHAPING, "mean", "accuracy", "kl", "num_responses"))
"""Names that no part of a task may have: parts of ours, and metrics below ``reward/``."""

MAX_PARTS = 32
"""Of a verdict."""
MAX_NUMBER = DEFAULT_LIMITS.max_reward
"""Absolute value of a part, a base or a weight."""
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")


def is_name(text: object) -> bool:
    """Whether a part may be called so: letters, digits and ``_``, a letter first, 64 at most."""
    return isinstance(text, str) and _NAME.fullmatch(text) is not None


def number_of(name: str, value: object) -> float:
    """`value` as a float. ValueError when it is no number, not finite, or beyond `MAX_NUMBER`."""
    if not isinstance(value, Real):
        raise ValueError(f"{name}: a {type(value).__name__} where a number should be")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= MAX_NUMBER:  # so put, it refuses NaN too
        raise ValueError(f"{name}: {number:g} is not finite, or beyond {MAX_NUMBER:g}")
    return number


def parts_of_verdict(components: object) -> dict[str, float]:
    """A verdict's components as floats. ValueError names the one that can't be."""
    if not isinstance(components, Mapping) or len(components) > MAX_PARTS:
        raise ValueError(f"components: no mapping of at most {MAX_PARTS} names to numbers")
    for name in components:
        if not is_name(name):
            raise ValueError(f"components: {str(name)[:80]!r} is no name: letters, digits and _, a letter first")
        if name in RESERVED:
            raise ValueError(f"components: {name!r} is a name of vcppo's own: choose another")
    return {name: number_of(f"components.{name}", value) for name, value in components.items()}

"""What `vcppo samples` lets one choose of: names and their parsing, without anything that reads samples."""

from __future__ import annotations

import re
import sys
from typing import Literal

Stage = Literal["value_pretraining", "rl", "eval"]
STAGES: tuple[Stage, ...] = ("value_pretraining", "rl", "eval")
SORTS = ("advantage", "mismatch", "reward", "length")
ALL_STEPS = (0, sys.maxsize)


def parse_steps(text: str) -> tuple[int, int] | None:
    """(first, last) of ``12``, ``3-7`` or ``all``; None: it is none of these."""
    if text == "all":
        return ALL_STEPS
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    return (int(match[1]), int(match[2] or match[1])) if match else None

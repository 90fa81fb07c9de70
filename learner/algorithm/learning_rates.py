"""Learning rates over a run, as factors of their peak. Pure."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]


def rate_factor(step: int, *, schedule: Schedule, warmup_steps: int, num_steps: int | None = None) -> float:
    """What the peak rate is multiplied with in a step, in (0, 1].

    Linear over the warm-up, s/(W + 1) for s = 1 … W; then 1, or (1 + cos(pi (s - 1 - W)/(S - W)))/2 for `cosine`.

    Args:
        step: s, from 1.
        warmup_steps: W; 0: none.
        num_steps: S, of the whole run; needed by `cosine`. Later steps have the factor of its end, 0.

    Raises:
        ValueError: cosine without num_steps.
    """
    if step <= warmup_steps:
        return step / (warmup_steps + 1)
    if schedule == "constant":
        return 1.0
    if num_steps is None:
        raise ValueError("rate_factor: schedule=cosine needs num_steps")
    span = max(1, num_steps - warmup_steps)
    return 0.5 * (1.0 + math.cos(math.pi * min(1.0, (step - 1 - warmup_steps) / span)))

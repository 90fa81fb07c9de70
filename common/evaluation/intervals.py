"""Confidence intervals of proportions. Pure maths."""

from __future__ import annotations

import math
from statistics import NormalDist

Interval = tuple[float, float]


def wilson(successes: float, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval ``(low, high)`` of a proportion (Wilson, 1927, JASA 22:209).

    It stays honest near 0 and 1, where the usual normal interval has no width. ``(0, 1)`` of nothing.

    Args:
        successes: how many of `n`; a sum of shares may be a fraction.
        n: number of independent draws.
        confidence: in (0, 1).

    Raises:
        ValueError: unless 0 <= successes <= n and 0 < confidence < 1.
    """
    if not (0 <= successes <= n and 0 < confidence < 1):
        raise ValueError(
            f"an interval needs 0 <= successes <= n and 0 < confidence < 1, "
            f"got successes={successes}, n={n}, confidence={confidence}"
        )
    if n == 0:
        return 0.0, 1.0
    rate, z = successes / n, NormalDist().inv_cdf(0.5 + confidence / 2)
    z2 = z**2
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z2 / (4 * n**2)) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)

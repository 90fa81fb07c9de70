"""pass@1 and pass@k of an evaluation, with 95 % intervals. Pure maths over counts: n samples a problem, c correct.

pass@k is the unbiased estimate 1 − C(n−c, k) / C(n, k) (Chen et al., 2021), averaged over problems. Samples of one
problem are not independent, so intervals of means are a bootstrap over problems; a plain proportion has Wilson's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vcppo.common.evaluation.intervals import Interval, wilson

NUM_RESAMPLES = 9999
CONFIDENCE = 0.95


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of ``k`` of the ``num_samples`` is correct. ValueError unless k <= num_samples."""
    if not (1 <= k <= num_samples and 0 <= num_correct <= num_samples):
        raise ValueError(
            f"pass@k needs 1 <= k <= num_samples, got k={k}, num_samples={num_samples}, num_correct={num_correct}"
        )
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def mean_interval(per_problem: Sequence[float] | NDArray[np.float64], seed: int) -> Interval:
    """95 % interval of the mean over problems of numbers in [0, 1].

    A bootstrap over problems (SciPy, percentile). Where they are all alike a bootstrap sees no spread at all; then
    Wilson's, with a problem as one draw.
    """
    values = np.asarray(per_problem, np.float64)
    if len(values) < 2 or np.ptp(values) == 0.0:
        return wilson(float(values.sum()), len(values))
    from scipy.stats import bootstrap

    found = bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=NUM_RESAMPLES, method="percentile",
        rng=np.random.default_rng(seed), batch=max(1, 10_000_000 // len(values)),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def pass_figures(counts: Sequence[tuple[int, int]], k: int, seed: int) -> dict[str, float | Interval | int]:
    """pass@1 and pass@k with their intervals.

    Args:
        counts: ``(num_samples, num_correct)`` of each problem, at least one.
        k: of pass@k; at most the fewest samples of a problem.
        seed: of the bootstrap.
    """
    rates = [correct / num for num, correct in counts]
    at_k = [pass_at_k(num, correct, k) for num, correct in counts]
    single = all(num == 1 for num, _ in counts)
    at_1 = wilson(sum(rates), len(rates)) if single else mean_interval(rates, seed)
    return {
        "pass_at_1": float(np.mean(rates)),
        "pass_at_1_interval": at_1,
        "k": k,
        "pass_at_k": float(np.mean(at_k)),
        "pass_at_k_interval": at_1 if k == 1 else mean_interval(at_k, seed),
    }

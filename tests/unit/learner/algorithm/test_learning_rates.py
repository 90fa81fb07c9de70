"""Learning rates over a run."""

from __future__ import annotations

import math

import pytest

from vcppo.learner.algorithm.learning_rates import rate_factor


def test_constant_is_one_after_the_warm_up() -> None:
    factors = [rate_factor(s, schedule="constant", warmup_steps=3) for s in range(1, 7)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_end_of_the_warm_up_to_the_end_of_the_run() -> None:
    factors = [rate_factor(s, schedule="cosine", warmup_steps=2, num_steps=10) for s in range(1, 13)]
    expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)), 0.0, 0.0]
    assert factors == pytest.approx(expected)
    assert all(factor > 0 for factor in factors[:10])


def test_cosine_needs_the_length_of_the_run() -> None:
    with pytest.raises(ValueError, match="num_steps"):
        rate_factor(5, schedule="cosine", warmup_steps=0)

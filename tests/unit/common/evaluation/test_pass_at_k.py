"""pass@k against a table worked out by hand, and intervals against what they must be."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from vcppo.common.evaluation.intervals import wilson
from vcppo.common.evaluation.pass_at_k import mean_interval, pass_at_k, pass_figures

# 1 - C(n-c, k) / C(n, k), worked out with pencil and paper:
#   n=4, c=1: k=2: 1 - 3/6;  k=3: 1 - 1/4          n=5, c=2: k=1: 1 - 3/5;  k=2: 1 - 3/10;  k=3: 1 - 1/10
#   n=6, c=3: k=2: 1 - 3/15; k=3: 1 - 1/20         n=10, c=1: k=5: 1 - 126/252
#   n=32, c=1: k=1: 1/32; k=16: 1 - C(31,16)/C(32,16) = 1 - 16/32        n=32, c=2: k=16: 1 - (16 x 15)/(32 x 31)
BY_HAND = [
    (4, 1, 2, 1 / 2), (4, 1, 3, 3 / 4), (4, 1, 4, 1.0), (5, 2, 1, 2 / 5), (5, 2, 2, 7 / 10), (5, 2, 3, 9 / 10),
    (6, 3, 2, 4 / 5), (6, 3, 3, 19 / 20), (6, 3, 4, 1.0), (10, 1, 5, 1 / 2), (32, 0, 32, 0.0), (32, 1, 32, 1.0),
    (32, 1, 1, 1 / 32), (32, 1, 16, 1 / 2), (32, 2, 16, 1 - 240 / 992), (1, 0, 1, 0.0), (1, 1, 1, 1.0),
]  # fmt: skip


@pytest.mark.parametrize(("n", "c", "k", "wanted"), BY_HAND)
def test_table_by_hand(n: int, c: int, k: int, wanted: float) -> None:
    assert pass_at_k(n, c, k) == pytest.approx(wanted, abs=1e-15)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 5, 3)])
def test_it_is_the_share_of_draws_with_a_correct_one(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


@pytest.mark.parametrize(("n", "c", "k"), [(2, 1, 3), (2, 3, 1), (2, -1, 1), (2, 1, 0)])
def test_what_has_no_meaning_is_refused(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k}, num_samples={n}"):
        pass_at_k(n, c, k)


def test_interval_of_a_mean_is_the_normal_one_where_that_is_right() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = mean_interval(values, seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.05)
    assert mean_interval(values, seed=1) == (low, high)


def test_problems_all_alike_are_no_certainty() -> None:
    assert mean_interval([0.0] * 30, seed=0) == pytest.approx(wilson(0, 30))
    assert mean_interval([1.0], seed=0)[0] < 0.5


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """30 problems of difficulties drawn anew, 8 samples each: what a benchmark is."""
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(60):
        difficulty = rng.beta(1, 2, 30)
        low, high = mean_interval(rng.binomial(8, difficulty) / 8, seed)
        covered += low <= 1 / 3 <= high
    assert 0.85 <= covered / 60 <= 1.0


def test_figures_average_over_problems_not_samples() -> None:
    figures = pass_figures([(4, 1), (4, 4), (4, 0)], k=2, seed=0)
    assert figures["pass_at_1"] == pytest.approx((0.25 + 1 + 0) / 3)
    assert figures["pass_at_k"] == pytest.approx((0.5 + 1 + 0) / 3)
    single = pass_figures([(1, 1), (1, 0), (1, 1)], k=1, seed=0)
    assert single["pass_at_1_interval"] == single["pass_at_k_interval"] == wilson(2, 3)

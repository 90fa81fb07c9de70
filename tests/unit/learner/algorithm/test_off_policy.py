"""Weights, rejection and figures of off-policy data, against the formulas in Python floats."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.learner.algorithm.off_policy import (
    effective_share,
    importance_weights,
    log_ratios,
    mismatch,
    normalised,
    within_band,
)

numbers = st.floats(-3, 3, width=32)
sequences = st.lists(st.lists(st.tuples(numbers, numbers), max_size=5), min_size=1, max_size=5)


def flat(rows):
    proximal = np.array([p for row in rows for p, _ in row], np.float32)
    behaviour = np.array([b for row in rows for _, b in row], np.float32)
    return proximal, behaviour, np.cumsum([0, *(len(row) for row in rows)]).astype(np.int64)


def literal_ratios(rows, level):
    """pi_proximal / pi_behaviour of each action, as the papers write it."""
    found = []
    for row in rows:
        ratios = [math.exp(p) / math.exp(b) for p, b in row]
        of_all = math.prod(ratios)
        each = {"sequence": of_all, "geometric": of_all ** (1 / max(1, len(row)))}
        found += ratios if level == "token" else [each[level]] * len(row)
    return found


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
@settings(max_examples=60, deadline=None)
@given(sequences)
def test_weights_and_band_are_of_the_ratio_of_each_level(level, rows):
    ratios = literal_ratios(rows, level)
    got = log_ratios(*flat(rows), level)
    assert importance_weights(got, 2.0).tolist() == pytest.approx([min(r, 2.0) for r in ratios], rel=1e-5)
    far = [k for k, r in enumerate(ratios) if min(abs(r - 0.5), abs(r - 3.0)) > 1e-5]  # no tie by rounding
    kept = within_band(got, 0.5, 3.0)
    assert [bool(kept[k]) for k in far] == [0.5 <= ratios[k] <= 3.0 for k in far]


@settings(max_examples=60, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=30))
def test_mismatch_is_k3_and_the_effective_sample_size(ds):
    k3 = [math.exp(d) - d - 1 for d in ds]
    ratios = [math.exp(d) for d in ds]
    got = mismatch(np.array(ds))
    assert got.kl == pytest.approx(math.fsum(k3) / len(k3), abs=1e-9)
    assert got.kl_max == pytest.approx(max(k3), abs=1e-9)
    assert got.ess == pytest.approx(sum(ratios) ** 2 / (len(ds) * sum(r * r for r in ratios)))
    assert 0 <= got.kl <= got.kl_max * (1 + 1e-12) and 1 / len(ds) - 1e-9 <= got.ess <= 1 + 1e-9


def test_one_token_that_blows_up_does_not_hide_all_others() -> None:
    d = np.zeros(10_000)
    d[7] = 300.0  # e^300: today's mean would be that of this token alone
    got = mismatch(d)
    assert got.kl_max == pytest.approx(math.exp(5) - 6)
    assert got.kl == pytest.approx((math.exp(5) - 6) / 10_000)
    assert got.kl_p99 == 0
    assert importance_weights(np.array([1e9, -1e9]), 2.0).tolist() == pytest.approx([2.0, 0.0])


def test_nothing_and_numbers_that_are_none() -> None:
    assert mismatch(np.zeros(0)) == (None, None, None, None)
    assert effective_share(np.zeros(3)) is None
    assert effective_share(np.array([0.0, 5.0])) == 0.5
    assert within_band(np.array([np.nan, 0.0]), 0.5, 2.0).tolist() == [False, True]


def test_normalised_weights_have_a_mean_of_one_where_they_count() -> None:
    weights, mask = np.array([0.5, 9.0, 1.0, 1.5], np.float32), np.array([True, False, True, False])
    found = normalised(weights, mask)
    assert found.tolist() == pytest.approx([0.5 / 0.75, 9 / 0.75, 1 / 0.75, 1.5 / 0.75])
    assert normalised(weights, np.zeros(4, bool)).tolist() == weights.tolist()
    assert normalised(np.zeros(4, np.float32), mask).tolist() == [0] * 4

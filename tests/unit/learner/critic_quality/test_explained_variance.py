"""Explained variance against the literal formula, and null where it means nothing."""

from __future__ import annotations

import numpy as np
import pytest

from tests.unit.rig import oracle
from vcppo.learner.critic_quality.explained_variance import explained_variance, mean_by_position, position_deciles

rng = np.random.default_rng(0)
LENGTHS = np.array([30, 4, 12, 1, 20, 9])
CU = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
GROUPS = ["a", "a", "b", "b", "b", "c"]
OUTCOMES = np.array([1.0, -1.0, 1.0, 1.0, -1.0, -1.0])
RETURNS = np.repeat(OUTCOMES, LENGTHS)
VALUES = RETURNS * 0.5 + rng.normal(0, 0.4, len(RETURNS))


def test_token_and_sequence_weights() -> None:
    result = explained_variance(VALUES, RETURNS, CU, GROUPS)
    ones = [1.0] * len(RETURNS)
    shares = [1.0 / length for length in LENGTHS for _ in range(length)]
    assert result.token == pytest.approx(oracle.explained_variance(VALUES.tolist(), RETURNS.tolist(), ones))
    assert result.sequence == pytest.approx(oracle.explained_variance(VALUES.tolist(), RETURNS.tolist(), shares))
    assert result.token != pytest.approx(result.sequence)


def test_a_critic_that_only_knows_the_prompt_explains_nothing_within_it() -> None:
    level = {"a": 0.3, "b": 0.7, "c": -1.0}
    values = np.repeat([level[g] for g in GROUPS], LENGTHS)
    result = explained_variance(values, RETURNS, CU, GROUPS)
    assert result.sequence > 0.1
    assert result.within_prompt == pytest.approx(0.0)
    perfect = explained_variance(RETURNS, RETURNS, CU, GROUPS)
    assert (perfect.token, perfect.sequence, perfect.within_prompt) == pytest.approx((1.0, 1.0, 1.0))


def test_undefined_is_none_and_a_constant_with_rounding_is_constant() -> None:
    constant = np.full(len(RETURNS), 0.1, np.float32)
    result = explained_variance(VALUES, constant, CU, GROUPS)
    assert (result.token, result.sequence, result.within_prompt) == (None,) * 3
    assert result.by_position == [None] * 10
    empty = explained_variance(np.zeros(0), np.zeros(0), np.zeros(1, np.int64), [])
    assert empty.token is None and empty.within_prompt is None


def test_by_position_looks_at_one_tenth_at_a_time() -> None:
    """Values that are right in the last tenth only."""
    cu = np.array([0, 20, 40], np.int64)
    returns = np.repeat([1.0, -1.0], 20)
    values = np.where(position_deciles(cu) == 9, returns, 0.0)
    result = explained_variance(values, returns, cu, ["a", "a"])
    assert result.by_position == pytest.approx([0.0] * 9 + [1.0])


def test_deciles_and_means() -> None:
    cu = np.array([0, 10, 10, 13], np.int64)
    assert position_deciles(cu).tolist() == [*range(10), 0, 3, 6]
    means = mean_by_position(np.arange(13.0), cu)
    assert means[:4] == [5.0, 1.0, 2.0, 7.0]
    assert mean_by_position(np.ones(1), np.array([0, 1], np.int64))[1:] == [None] * 9

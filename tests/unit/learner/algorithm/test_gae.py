"""GAE against the literal formulas, at lambdas where a masking bug would show."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.learner.algorithm.gae import decoupled_gae, monte_carlo_returns

finite = st.floats(-3, 3, width=32)
lambdas = st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])


@st.composite
def ragged(draw: st.DrawFn) -> list[tuple[list[float], list[float], float]]:
    """A few sequences, some empty: (rewards, values, final value)."""
    sequences = []
    for length in draw(st.lists(st.integers(0, 12), min_size=1, max_size=5)):
        floats = st.lists(finite, min_size=length, max_size=length)
        sequences.append((draw(floats), draw(floats), draw(finite)))
    return sequences


def packed(sequences: list[tuple[list[float], list[float], float]]) -> tuple[np.ndarray, ...]:
    rewards = np.array([r for seq in sequences for r in seq[0]], np.float32)
    values = np.array([v for seq in sequences for v in seq[1]], np.float32)
    finals = np.array([seq[2] for seq in sequences], np.float32)
    return rewards, values, finals, np.cumsum([0] + [len(seq[0]) for seq in sequences]).astype(np.int64)


@settings(max_examples=150, deadline=None)
@given(ragged(), lambdas, lambdas, st.sampled_from([1.0, 0.9]))
def test_both_results_are_the_papers_sums(sequences, lambda_actor, lambda_critic, gamma):
    result = decoupled_gae(*packed(sequences), gamma=gamma, lambda_actor=lambda_actor, lambda_critic=lambda_critic)
    advantages = [a for r, v, f in sequences for a in oracle.gae(r, v, f, lambda_actor, gamma)]
    targets = [t for r, v, f in sequences for t in oracle.value_targets(r, v, f, lambda_critic, gamma)]
    np.testing.assert_allclose(result.advantages, advantages, rtol=1e-6, atol=2e-6)
    np.testing.assert_allclose(result.value_targets, targets, rtol=1e-6, atol=2e-6)


@settings(max_examples=100, deadline=None)
@given(ragged(), lambdas)
def test_equation_8_mixture_of_n_step_returns(sequences, lam):
    result = decoupled_gae(*packed(sequences), gamma=1.0, lambda_actor=lam, lambda_critic=1.0)
    expected = [oracle.eq8_mixture(r, v, f, t, lam) for r, v, f in sequences for t in range(len(r))]
    np.testing.assert_allclose(result.advantages, expected, rtol=1e-6, atol=5e-6)


@pytest.mark.parametrize("reward", [1.0, -1.0, 0.1])
def test_at_lambda_1_targets_are_the_outcome_to_the_last_bit(reward: float) -> None:
    rng = np.random.default_rng(0)
    length = 5000
    rewards = np.zeros(length, np.float32)
    rewards[-1] = reward
    values = rng.normal(0, 1e3, length).astype(np.float32)  # V + (R - V) would round visibly
    cu = np.array([0, length], np.int64)
    result = decoupled_gae(
        rewards, values, np.zeros(1, np.float32), cu, gamma=1.0, lambda_actor=0.95, lambda_critic=1.0
    )
    assert (result.value_targets == np.float32(reward)).all()


def test_at_lambda_1_targets_are_exact_sums_of_dense_rewards() -> None:
    rewards = np.random.default_rng(1).normal(size=999).astype(np.float32)
    cu = np.array([0, 400, 400, 999], np.int64)
    returns = monte_carlo_returns(rewards, cu)
    for start, stop in ((0, 400), (400, 999)):
        expected = [math.fsum(rewards[t:stop].tolist()) for t in range(start, stop)]
        np.testing.assert_allclose(returns[start:stop], expected, rtol=1e-7, atol=1e-6)


def test_long_sequences_keep_six_digits() -> None:
    rng = np.random.default_rng(2)
    length = 3000
    rewards, values = rng.normal(size=(2, length)).astype(np.float32)
    cu = np.array([0, length], np.int64)
    result = decoupled_gae(
        rewards, values, np.zeros(1, np.float32), cu, gamma=1.0, lambda_actor=0.99, lambda_critic=0.95
    )
    at = [0, 1, 1234, length - 1]
    expected = [oracle.gae(rewards[t:].tolist(), values[t:].tolist(), 0.0, 0.99)[0] for t in at]
    assert np.abs((result.advantages[at] - expected) / np.abs(expected)).max() < 1e-6


def test_lambda_may_differ_by_sequence() -> None:
    sequences = [([0.0, 0.0, 1.0], [0.3, -0.2, 0.5], 0.0), ([0.0, -1.0], [0.1, 0.7], 0.4)]
    lambda_actor, lambda_critic = np.array([0.95, 0.5]), np.array([1.0, 0.9])
    result = decoupled_gae(*packed(sequences), gamma=1.0, lambda_actor=lambda_actor, lambda_critic=lambda_critic)
    expected = [a for (r, v, f), lam in zip(sequences, lambda_actor, strict=True) for a in oracle.gae(r, v, f, lam)]
    np.testing.assert_allclose(result.advantages, expected, atol=1e-6)


def test_an_empty_share_gives_empty_arrays() -> None:
    none = np.zeros(0, np.float32)
    result = decoupled_gae(none, none, none, np.zeros(1, np.int64), gamma=1.0, lambda_actor=0.95, lambda_critic=1.0)
    assert len(result.advantages) == 0 and len(result.value_targets) == 0


def test_lengths_that_disagree_are_refused_with_their_numbers() -> None:
    three, one = np.zeros(3, np.float32), np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="3 rewards, 3 values, 1 bootstrap_values"):
        decoupled_gae(three, three, one, np.array([0, 2], np.int64), gamma=1.0, lambda_actor=0.95, lambda_critic=1.0)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("lambdas", [(0.95, 1.0), (0.0, 0.0), (1.0, 0.5)])
@pytest.mark.parametrize("where", ["rewards", "values", "bootstrap_values"])
def test_a_value_that_is_not_finite_is_refused_with_its_sequence(
    where: str, lambdas: tuple[float, float], broken: float
) -> None:
    cu = np.array([0, 3, 3, 8], np.int64)
    for at in (0, 1) if where == "bootstrap_values" else (3, 5, 7):
        arrays = {name: np.zeros(8, np.float32) for name in ("rewards", "values")}
        arrays["bootstrap_values"] = np.zeros(3, np.float32)
        arrays[where][at + (where == "bootstrap_values")] = broken
        sequence = 1 + at if where == "bootstrap_values" else 2
        with pytest.raises(ValueError, match=rf"sequence {sequence} .*not finite"):
            decoupled_gae(
                arrays["rewards"],
                arrays["values"],
                arrays["bootstrap_values"],
                cu,
                gamma=1.0,
                lambda_actor=lambdas[0],
                lambda_critic=lambdas[1],
            )

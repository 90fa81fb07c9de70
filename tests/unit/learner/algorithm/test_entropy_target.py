"""The entropy's weight against the rule written down in Python; exact over a checkpoint."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.common.config import AlgorithmConfig
from vcppo.learner.algorithm.entropy_target import EntropyWeight

TARGET = 0.2


def weight() -> EntropyWeight:
    return EntropyWeight(AlgorithmConfig(entropy_target=TARGET, entropy_step=0.004, entropy_limit=0.01))


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from([0.05, 0.1, TARGET, 0.3, 1.0]), max_size=20))
def test_it_goes_up_below_the_target_and_down_above_it(entropies):
    ours, found = weight(), []
    assert ours.in_force == 0.0
    for entropy in entropies:
        ours.after(entropy)
        found.append(ours.in_force)
    assert found == pytest.approx(oracle.entropy_weights(entropies, TARGET, 0.004, 0.01))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=12), st.integers(0, 12))
def test_a_resumed_one_goes_on_as_if_nothing_had_been(entropies, cut):
    """To the last bit, wherever the checkpoint lies."""
    whole, first = weight(), weight()
    for entropy in entropies:
        whole.after(entropy)
    for entropy in entropies[:cut]:
        first.after(entropy)
    resumed = weight()
    resumed.restore(first.numbers())
    for entropy in entropies[cut:]:
        resumed.after(entropy)
    assert (resumed.in_force, resumed.numbers()) == (whole.in_force, whole.numbers())
    assert all(math.isfinite(number) for number in resumed.numbers().values())


def test_it_holds_a_policy_at_the_target() -> None:
    """A policy whose entropy falls by itself and rises with the bonus settles around the target, from both sides."""
    for entropy in (0.6, 0.02):
        ours = weight()
        for _ in range(400):
            ours.after(entropy)
            entropy = max(0.0, entropy - 0.003 + ours.in_force)
        assert abs(entropy - TARGET) < 0.05


def test_a_step_that_trained_nothing_changes_nothing() -> None:
    ours = weight()
    ours.after(0.1)
    before = ours.numbers()
    ours.after(None)
    assert ours.numbers() == before


def test_a_fixed_one_is_what_the_config_says() -> None:
    fixed = EntropyWeight(AlgorithmConfig(entropy_coefficient=0.01))
    fixed.after(0.0)
    fixed.restore({"entropy_coefficient": 3.0, "entropy": 0.1})  # of a run that had a target before
    assert (fixed.in_force, fixed.numbers()) == (0.01, {})

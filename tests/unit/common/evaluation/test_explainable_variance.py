"""Explainable variance: against the textbook, against a process whose conditional probabilities are known, and at the
two ends. The intervals hold what they say."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.unit.rig import oracle
from vcppo.common.evaluation.explainable_variance import explainable_variance, group_mean_explains
from vcppo.common.evaluation.over_prompts import LEVEL

Array = NDArray[np.float64]
DECISIONS = 12
NEEDED = 7  # right decisions, for a reward of 1
SKILLS = (0.35, 0.55, 0.75)  # chance of a right decision; a prompt shows its own


def chance(skill: float, right: int, left: int) -> float:
    """P(at least NEEDED are right) with `right` already, and `left` decisions to go: a sum of binomial terms."""
    return sum(
        comb(left, more) * skill**more * (1 - skill) ** (left - more)
        for more in range(left + 1)
        if right + more >= NEEDED
    )


def states(t: int) -> list[tuple[float, float, float]]:
    """(probability, chance of success, chance at the prompt) of each state that may be met after t decisions."""
    return [
        (
            comb(t, right) * skill**right * (1 - skill) ** (t - right) / len(SKILLS),
            chance(skill, right, DECISIONS - t),
            chance(skill, 0, DECISIONS),
        )
        for skill in SKILLS
        for right in range(t + 1)
    ]


def truth(t: int) -> tuple[float, float]:
    """Exactly: explainable after t decisions, and what a critic explains there that only knows the prompt."""
    mean = sum(p * q for p, q, _ in states(t))
    total = mean * (1 - mean)  # rewards are 0 and 1
    by_state = sum(p * (q - mean) ** 2 for p, q, _ in states(t))
    by_prompt = sum(p * (b - mean) ** 2 for p, _, b in states(t))
    return by_state / total, by_prompt / total


def continued(t: int, num: int, times: int, seed: int) -> tuple[Array, Array]:
    """``[num, times]`` rewards of continuations; ``[num]`` values of the critic that only knows the prompt."""
    random = np.random.default_rng(seed)
    skill = random.choice(SKILLS, num)
    right = random.binomial(t, skill)
    more = random.binomial(DECISIONS - t, np.repeat(skill[:, None], times, axis=1))
    values = np.array([chance(each, 0, DECISIONS) for each in skill])
    return (right[:, None] + more >= NEEDED).astype(np.float64), values


@pytest.mark.parametrize("t", [0, 3, 6, 9, 12])
def test_a_process_whose_chances_are_known_is_found_within_the_interval(t: int) -> None:
    returns, values = continued(t, num=600, times=4, seed=t)
    found, (by_state, by_prompt) = explainable_variance(returns, values, seed=0), truth(t)
    assert found.explained is not None and found.reached is not None
    for figure, exact in ((found.explainable, by_state), (found.explained, by_prompt)):
        assert figure.value is not None and figure.interval is not None
        assert figure.interval.low - 1e-9 <= exact <= figure.interval.high + 1e-9
        assert figure.interval.high - figure.interval.low < 0.25
    assert found.reached.value == pytest.approx(by_prompt / by_state, abs=0.12)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    exact = truth(6)[0]
    intervals = [explainable_variance(continued(6, 48, 4, seed)[0], None, seed).explainable for seed in range(200)]
    held = [each.interval is not None and each.interval.low <= exact <= each.interval.high for each in intervals]
    assert LEVEL - 0.08 <= np.mean(held) <= LEVEL + 0.07


def test_the_mean_of_many_estimates_is_the_truth_where_that_of_the_means_alone_is_not() -> None:
    """Two continuations suffice: more make it surer, not righter."""
    exact, found, naive = truth(6)[0], [], []
    for seed in range(300):
        returns, _ = continued(6, 200, 2, seed)
        found.append(explainable_variance(returns, None, 0).explainable.value)
        naive.append(returns.mean(axis=1).var() / returns.var())
    assert np.mean(found) == pytest.approx(exact, abs=0.01)
    assert np.mean(naive) > exact + 0.1


TABLES = st.integers(2, 12).flatmap(
    lambda k: st.lists(st.lists(st.integers(-3, 3), min_size=k, max_size=k), min_size=3, max_size=20)
)


@given(TABLES, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_it_is_the_textbook_s_and_the_order_of_prompts_is_nothing(table: list[list[int]], random: object) -> None:
    returns = np.array(table, np.float64)
    found = explainable_variance(returns, None, 0).explainable.value
    if np.ptp(returns) == 0:
        assert found is None
        return
    shuffled = list(table)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = explainable_variance(np.array(shuffled, np.float64), None, 0).explainable.value
    if found is None:  # nothing between and within but rounding
        assert again is None
        return
    assert found == pytest.approx(oracle.explainable([[float(r) for r in row] for row in table]), abs=1e-9)
    assert again == pytest.approx(found, abs=1e-9)


@given(st.integers(0, 2**31 - 1), st.integers(2, 8))
@settings(max_examples=40)
def test_prefixes_that_tell_all_explain_all(seed: int, times: int) -> None:
    outcome = np.random.default_rng(seed).integers(0, 2, 30).astype(np.float64)
    outcome[:2] = 0.0, 1.0
    returns = np.repeat(outcome[:, None], times, axis=1)
    found = explainable_variance(returns, outcome, seed)
    assert found.explainable.value == pytest.approx(1.0)
    assert found.explained is not None and found.explained.value == pytest.approx(1.0)
    assert found.reached is not None and found.reached.value == pytest.approx(1.0)


def test_prefixes_that_tell_nothing_explain_nothing_on_average() -> None:
    found = []
    for seed in range(400):
        returns = (np.random.default_rng(seed).random((24, 3)) < 0.3).astype(np.float64)
        found.append(explainable_variance(returns, None, 0).explainable.value)
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found)) < 3 * error
    assert min(found) < 0  # cut off at 0, the mean would be above it


def test_a_critic_s_share_is_only_given_where_something_is_certain_to_be_explainable() -> None:
    random = np.random.default_rng(0)
    returns = (random.random((24, 3)) < 0.5).astype(np.float64)
    found = explainable_variance(returns, random.random(24), 0)
    assert found.explained is not None and found.reached is None


def test_a_critic_that_is_off_by_a_constant_explains_as_much() -> None:
    returns, values = continued(6, 200, 4, 0)
    one, other = (explainable_variance(returns, values + shift, 0).explained for shift in (0.0, 5.0))
    assert one is not None and other is not None and other.value == pytest.approx(one.value)
    assert one.value is not None and one.value < 1


def test_what_can_t_be_estimated_is_undefined() -> None:
    assert explainable_variance(np.ones((5, 3)), None, 0).explainable.value is None
    assert explainable_variance(np.array([[0.0, 1.0]]), None, 0).explainable.value is None
    with pytest.raises(ValueError, match="two continuations"):
        explainable_variance(np.ones((5, 1)), None, 0)


@pytest.mark.parametrize("size", [2, 4, 16])
def test_what_a_group_s_mean_explains_is_what_it_explains_of_simulated_groups(size: int) -> None:
    random = np.random.default_rng(size)
    chances = np.array([chance(skill, 0, DECISIONS) for skill in SKILLS])[random.integers(0, len(SKILLS), 60_000)]
    outcome = (random.random((len(chances), size)) < chances[:, None]).astype(np.float64)
    others = (outcome.sum(axis=1) - outcome[:, 0]) / (size - 1)
    measured = 1 - np.var(outcome[:, 0] - others) / np.var(outcome[:, 0])
    assert group_mean_explains(truth(0)[0], size) == pytest.approx(measured, abs=0.02)
    assert group_mean_explains(0.5, 1) is None

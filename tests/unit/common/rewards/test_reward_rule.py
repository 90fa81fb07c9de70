"""The rule of rewards against its formula written down literally, and what the buffer makes of it."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Outcome
from vcppo.common.rewards.reward_parts import parts_of_verdict
from vcppo.common.rewards.reward_rule import RewardRule

NAMES = ("format", "brevity", "steps", "x")
OUTCOMES = get_args(Outcome)
NUMBERS = st.floats(-100, 100)


def oracle(rule: RewardRule, outcome: str, number: float | None, parts: dict[str, float], num_tokens: int) -> Fraction:
    """docs/rewards.md, term by term, in exact arithmetic; DAPO's equation 13 by its three cases."""
    total = Fraction(number if number is not None else rule.correct if outcome == "correct" else rule.wrong)
    for name, value in parts.items():
        total += Fraction(rule.weights[name] * value) if name in rule.weights else 0
    longest, cache = rule.max_response_tokens, rule.soft_overlong_cache
    if cache and num_tokens > longest:
        total += Fraction(-rule.soft_overlong_penalty)
    elif cache and num_tokens > longest - cache:
        total += Fraction(-rule.soft_overlong_penalty * ((num_tokens - (longest - cache)) / cache))
    return total - Fraction(rule.length_cost * num_tokens)


@st.composite
def rules(draw: st.DrawFn) -> RewardRule:
    longest = draw(st.integers(1, 300))
    return RewardRule(
        correct=draw(NUMBERS), wrong=draw(NUMBERS), low=-1e9, high=1e9,
        weights=draw(st.dictionaries(st.sampled_from(NAMES), NUMBERS)), max_response_tokens=longest,
        soft_overlong_cache=draw(st.integers(0, longest)), soft_overlong_penalty=draw(st.floats(0.01, 10)),
        length_cost=draw(st.sampled_from([0.0, 0.001, 0.37])),
    )  # fmt: skip


PARTS = st.dictionaries(st.sampled_from(NAMES), NUMBERS)


@given(rules(), st.sampled_from(OUTCOMES), st.none() | NUMBERS, PARTS, st.integers(1, 300))
def test_the_rule_is_the_formula(
    rule: RewardRule, outcome: Any, number: float | None, parts: dict[str, float], num_tokens: int
) -> None:
    score = rule.score(outcome, number, parts, num_tokens)
    assert score.reward == float(oracle(rule, outcome, number, parts, num_tokens))
    assert score.outcome == outcome and score.fault is None
    assert {name: score.components[name] for name in parts} == parts
    assert score.components.get("base") == number


@given(rules(), st.sampled_from(OUTCOMES), st.none() | NUMBERS, PARTS, st.integers(1, 300), st.floats(0.1, 50))
def test_what_it_makes_passes_its_check_whatever_the_order_and_nothing_else_does(
    rule: RewardRule, outcome: Any, number: float | None, parts: dict[str, float], num_tokens: int, top: float
) -> None:
    rule = replace(rule, low=-100.0 - 10.0 - 120.0, high=100.0 + top)
    score = rule.score(outcome, number, parts, num_tokens)
    turned = dict(reversed(score.components.items()))
    rule.check(score.outcome, score.reward, turned, num_tokens)
    with pytest.raises(ValueError, match=r"^reward: "):
        rule.check(score.outcome, math.nextafter(score.reward, math.inf), turned, num_tokens)


@pytest.mark.parametrize(
    ("num_tokens", "expected"), [(1, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (99, -0.95), (100, -1.0)]
)
def test_the_soft_overlong_penalty_falls_over_the_cache(num_tokens: int, expected: float) -> None:
    rule = RewardRule(low=-2.0, max_response_tokens=100, soft_overlong_cache=20)
    assert rule.score("correct", None, {}, num_tokens).reward == pytest.approx(1.0 + expected)
    assert rule.shaping(num_tokens)["soft_overlong"] == pytest.approx(expected)


def test_beyond_the_range_the_number_is_trained_nowhere() -> None:
    rule = RewardRule(low=-1.5, high=1.25, weights={"x": 1.0}, length_cost=0.125, max_response_tokens=4)
    score = rule.score("correct", None, {"x": 0.75}, 4)
    assert score.fault is None and score.reward == 1.25
    score = rule.score("correct", 5.0, {"x": 0.75}, 4)
    assert score.outcome == "crash" and score.reward == -1.5
    assert score.components == {"length_cost": -0.5}
    assert score.fault == "reward 5.25 is beyond task.reward_range = [-1.5, 1.25]"
    rule.check(*score[:3], 4)


def test_without_settings_a_reward_is_by_outcome_alone() -> None:
    rule = VcppoConfig.model_validate({"model": {"path": "m"}}).reward_rule
    for outcome in OUTCOMES:
        assert rule.score(outcome, None, {}, 7) == (outcome, 1.0 if outcome == "correct" else -1.0, {}, None)
    assert rule.score("wrong", 0.25, {"seen": 3.0}, 7) == ("wrong", 0.25, {"seen": 3.0, "base": 0.25}, None)


@pytest.mark.parametrize(
    ("components", "text"),
    [
        ({"a b": 1.0}, "'a b' is no name"),
        ({1: 1.0}, "'1' is no name"),
        ({"mean": 1.0}, "'mean' is a name of vcppo's own"),
        ({"base": 1.0}, "'base' is a name of vcppo's own"),
        ({"x": float("nan")}, "components.x: nan is not finite"),
        ({"x": 10**400}, "components.x: inf is not finite"),
        ({"x": "1"}, "components.x: a str where a number should be"),
        ({f"c{i}": 0.0 for i in range(33)}, "no mapping of at most 32"),
        ([("x", 1.0)], "no mapping of at most 32"),
    ],
)
def test_parts_that_are_none_are_refused_by_name(components: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        parts_of_verdict(components)


def test_numbers_of_any_kind_are_taken() -> None:
    import numpy as np

    assert parts_of_verdict({"a": np.float32(0.5), "b": True, "c": 3}) == {"a": 0.5, "b": 1.0, "c": 3.0}

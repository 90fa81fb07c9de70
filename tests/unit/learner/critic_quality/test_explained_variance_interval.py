"""The interval of explained variance: known cases, a plain reference, its coverage; and the best of several critics."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from vcppo.common.evaluation.over_prompts import Sums
from vcppo.learner.critic_quality.explained_variance import explained
from vcppo.learner.critic_quality.explained_variance_interval import (
    choose_and_measure,
    explained_by,
    measure,
    sums_by_prompt,
)

Array = NDArray[np.float64]


def grouped(values: Array, returns: Array, lengths: list[int], per_prompt: int) -> tuple[list[str], Sums]:
    """Sums of sequences of these lengths, `per_prompt` of them a prompt."""
    cu = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return sums_by_prompt(values, returns, cu, [f"g{i // per_prompt:03d}" for i in range(len(lengths))])


def samples(seed: int, num_prompts: int, per_prompt: int = 4, share: float = 0.5) -> tuple[Array, Array, list[int]]:
    """A calibrated critic that explains `share` of the variance of outcomes 0 and 1, right half of the time."""
    random = np.random.default_rng(seed)
    size = num_prompts * per_prompt
    belief = random.beta(0.5 * (1 / share - 1), 0.5 * (1 / share - 1), size)
    outcome = (random.random(size) < belief).astype(np.float64)
    lengths = [int(each) for each in random.integers(1, 6, size)]
    return np.repeat(belief, lengths), np.repeat(outcome, lengths), lengths


def test_a_perfect_critic_and_a_constant_one_are_certain() -> None:
    _, returns, lengths = samples(0, 40)
    perfect = measure(grouped(returns, returns, lengths, 4)[1], seed=1)
    assert perfect.value == 1.0
    assert perfect.interval == (1.0, 1.0)
    constant = measure(grouped(np.full_like(returns, 0.3), returns, lengths, 4)[1], seed=1)
    assert constant.value == pytest.approx(0.0, abs=1e-12)
    assert constant.interval is not None
    assert np.allclose(constant.interval, 0.0, atol=1e-9)


def test_returns_that_do_not_vary_have_no_figure() -> None:
    assert measure(grouped(np.arange(6.0), np.ones(6), [1] * 6, 2)[1], seed=0) == (None, None)
    assert measure(np.zeros((0, 5)), seed=0) == (None, None)


def test_one_varying_prompt_among_many_has_a_figure_and_no_interval() -> None:
    returns = np.array([1.0, 0.0, *[0.0] * 14])
    figure = measure(grouped(np.full(16, 0.1), returns, [1] * 16, 2)[1], seed=0)
    assert figure.value is not None
    assert figure.interval is None


def test_the_figure_is_that_of_explained_variance_far_from_0_too() -> None:
    values, returns, lengths = samples(3, 30)
    _, sums = grouped(values + 1e6, returns + 1e6, lengths, 4)
    expected = explained(values, returns, np.ones(len(values)))
    assert float(explained_by(sums.sum(axis=0))) == pytest.approx(expected, rel=1e-6)


def test_the_interval_is_that_of_drawing_whole_prompts_again() -> None:
    values, returns, lengths = samples(5, 25)
    prompts, sums = grouped(values, returns, lengths, 4)
    found = measure(sums, seed=2).interval
    prompt = np.repeat([i // 4 for i in range(len(lengths))], lengths)
    random, drawn = np.random.default_rng(9), []
    for _ in range(2000):
        chosen = np.concatenate([np.flatnonzero(prompt == g) for g in random.integers(0, len(prompts), len(prompts))])
        drawn.append(explained(values[chosen], returns[chosen], np.ones(len(chosen))))
    assert found is not None
    assert np.allclose(found, np.quantile(np.array(drawn, float), [0.05, 0.95]), atol=0.03)
    assert measure(sums, seed=2).interval == found


def test_nine_in_ten_intervals_contain_the_truth() -> None:
    inside = 0
    for seed in range(150):
        values, returns, lengths = samples(seed, 60, share=0.5)
        interval = measure(grouped(values, returns, lengths, 4)[1], seed).interval
        assert interval is not None
        inside += interval.low <= 0.5 <= interval.high
    assert 0.82 <= inside / 150 <= 0.97


def test_the_best_of_many_equal_critics_is_not_better_than_they_are() -> None:
    """Twenty critics that explain nothing, each with its own noise: the best looks good, the judged one does not."""
    best, judged = [], []
    for seed in range(60):
        random = np.random.default_rng(seed)
        returns = random.integers(0, 2, 48).astype(float)
        critics = []
        for _ in range(20):
            prompts, sums = grouped(0.3 * random.normal(size=48), returns, [1] * 48, 4)
            critics.append(sums)
        best.append(max(float(explained_by(sums.sum(axis=0))) for sums in critics))
        figure = choose_and_measure(prompts, critics, seed).value
        assert figure is not None
        judged.append(figure)
    truth = -(0.3**2) / 0.25
    assert np.mean(best) > truth + 0.15  # the luck
    assert np.mean(judged) == pytest.approx(truth, abs=0.08)


def test_a_critic_that_is_best_everywhere_is_measured_as_it_is() -> None:
    values, returns, lengths = samples(1, 40)
    prompts, good = grouped(values, returns, lengths, 4)
    _, poor = grouped(np.zeros_like(values) + 0.9, returns, lengths, 4)
    assert choose_and_measure(prompts, [poor, good, poor], seed=0).value == measure(good, seed=0).value


def test_critics_of_different_level_are_put_together_with_their_levels() -> None:
    """Best on the one half is a critic that is 10 too high: where it is measured, that counts."""
    returns = np.array([0.0, 1.0] * 8)
    prompts, high = grouped(returns + 10.0, returns, [1] * 16, 2)
    _, right = grouped(returns, returns, [1] * 16, 2)
    mixed = np.concatenate([high[:4], right[4:]])
    assert float(explained_by(mixed.sum(axis=0))) < -50
    assert choose_and_measure(prompts, [right], seed=0).value == 1.0

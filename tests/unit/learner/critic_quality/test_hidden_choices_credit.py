"""What `hidden_choices` is for, shown exactly: credit is visible by position, and no policy meets a ceiling.

The oracle (tests/unit/rig/hidden_choices_oracle.py) knows the value of every state of a policy with given skills.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tests.unit.rig.hidden_choices_oracle import (
    accuracy,
    explainable_variance,
    right_counts,
    skills_of,
    win_probabilities,
)
from vcppo.common.tasks.hidden_choices import HiddenChoices
from vcppo.learner.critic_quality.explained_variance import explained_variance

TASK = HiddenChoices()
CHANCE = 1 / TASK.options.num_options
N = TASK.options.num_decisions


def asked(task: HiddenChoices, skill: dict[str, float], count: int) -> list[tuple[list[float], int]]:
    """Skills and mark of `count` prompts of the task."""
    problems = task.problems("train", 0, 0, count)
    return [(skills_of(str(p.answer["kinds"]), skill), int(str(p.answer["mark"]))) for p in problems]


def alike(skill: float) -> list[tuple[list[float], int]]:
    """Every mark once, the same skill for all kinds."""
    low, high = TASK.options.marks
    return [([skill] * N, mark) for mark in range(low, high + 1)]


def test_the_poisson_binomial_is_the_sum_over_all_outcomes() -> None:
    skills = [0.1, 0.5, 0.7, 0.25, 0.9]
    expected = np.zeros(6)
    for outcome in product((0, 1), repeat=5):
        expected[sum(outcome)] += np.prod([p if right else 1 - p for p, right in zip(skills, outcome, strict=True)])
    np.testing.assert_allclose(right_counts(skills), expected, rtol=1e-12)
    wins = win_probabilities(skills, 3)
    assert wins[0, 0] == pytest.approx(expected[3:].sum())
    assert wins[5, 2] == 0 and wins[5, 3] == 1
    for t, skill in enumerate(skills):  # a value is the mean of the values that follow it
        for c in range(t + 1):
            assert wins[t, c] == pytest.approx(skill * wins[t + 1, c + 1] + (1 - skill) * wins[t + 1, c])


def test_real_responses_have_the_variance_that_the_oracle_says() -> None:
    """Text by a policy of given skills, judged by the task's verifier, valued by the oracle's critic."""
    task = HiddenChoices(num_decisions=10, num_kinds=4, min_mark=2, tokens_per_decision=6)
    rng, skill = np.random.default_rng(0), dict(zip("ABCD", (0.4, 0.5, 0.7, 0.9), strict=True))
    values, returns, groups = [], [], []
    problems = task.problems("train", 0, 0, 400)
    for number, problem in enumerate(problems):
        kinds, mark = str(problem.answer["kinds"]), int(str(problem.answer["mark"]))
        wins = win_probabilities(skills_of(kinds, skill), mark)
        for _ in range(10):
            is_right = [rng.random() < skill[kind] for kind in kinds]
            chosen = [
                (int(task.right_option(kind)) + (not right)) % 3 for kind, right in zip(kinds, is_right, strict=True)
            ]
            lines = [f"<{i + 1}>{kind}:>{kind}{chosen[i]}\n" for i, kind in enumerate(kinds)]
            verdict = task.verify(problem.answer, "".join(lines), "stop")
            so_far = np.concatenate([[0], np.cumsum(is_right)])
            values.append(wins[np.arange(10), so_far[:10]])  # V before each decision
            returns.append(np.full(10, float(verdict.outcome == "correct")))
            groups.append(str(number))
            assert verdict.extracted == str(sum(is_right))
    found = explained_variance(np.concatenate(values), np.concatenate(returns), np.arange(0, 40010, 10), groups)
    exact = explainable_variance(asked(task, skill, 400))
    np.testing.assert_allclose(np.array(found.by_position, float), exact[:10], atol=0.03)


@pytest.mark.parametrize("skill", [CHANCE, 0.5, 0.7, 0.9])
def test_credit_is_visible_by_position(skill: float) -> None:
    """What can be explained rises with every decision, from what the mark tells to all of it."""
    explainable = explainable_variance(alike(skill))
    assert np.all(np.diff(explainable) > 0)
    assert explainable[0] < 0.85, "the mark alone tells nearly everything: nothing is left for a critic to find"
    assert explainable[-1] == pytest.approx(1)
    of_the_rest = (explainable - explainable[0]) / (1 - explainable[0])
    assert of_the_rest[N // 2] > 0.2 and of_the_rest[9 * N // 10] > 0.6


@pytest.mark.parametrize("skill", [CHANCE, 0.5, 0.7, 0.9])
def test_some_prompts_are_at_the_edge_at_every_skill(skill: float) -> None:
    """A group of eight has both outcomes there; a right choice is worth something at the critic's next look."""
    chances = np.array([right_counts(skills)[mark:].sum() for skills, mark in alike(skill)])
    at_edge = (chances > 0.05) & (chances < 0.95)
    assert at_edge.mean() > 0.15
    for (skills, mark), is_at_edge in zip(alike(skill), at_edge, strict=True):
        wins = win_probabilities(skills, mark)
        assert wins[1, 1] >= wins[1, 0]
        assert not is_at_edge or wins[1, 1] - wins[1, 0] > 0.02


def test_there_is_no_ceiling_before_everything_is_known() -> None:
    """Accuracy rises with skill all the way; a random policy solves a quarter, one that is right 9 times of 10 no 9."""
    accuracies = [accuracy(alike(skill)) for skill in np.linspace(CHANCE, 1, 21)]
    assert np.all(np.diff(accuracies) > 0.015)
    assert 0.2 < accuracies[0] < 0.6
    assert accuracy(alike(0.9)) < 0.9 and accuracies[-1] == 1


def test_a_kind_that_is_not_known_holds_accuracy_down() -> None:
    """Nine kinds known and the tenth guessed: the marks that ask for all choices are out of reach."""
    kinds = "ABCDEFGHIJ"
    known = dict.fromkeys(kinds, 1.0)
    assert accuracy(asked(TASK, known, 200)) == pytest.approx(1)
    assert accuracy(asked(TASK, {**known, "C": CHANCE}, 200)) < 0.985
    guessed = asked(TASK, dict.fromkeys(kinds, CHANCE), 200)
    assert 0.2 < accuracy(guessed) < 0.35

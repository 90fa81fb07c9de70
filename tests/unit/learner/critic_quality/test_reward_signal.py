"""The outcome's way to early tokens: lambda^(T-t) with a critic that knows nothing, all of it at lambda = 1."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from vcppo.learner.critic_quality.signal_by_distance import DISTANCES, LAMBDAS, reward_signal

CU = np.array([0, 40, 80], np.int64)
REWARDS = np.array([1.0, -1.0], np.float32)
CORRECT = np.array([True, False])


def test_without_a_critic_it_is_lambda_to_the_distance() -> None:
    found = reward_signal(np.zeros(80, np.float32), REWARDS, CORRECT, CU)
    for lam in LAMBDAS:
        for bucket, (first, after) in enumerate(pairwise(DISTANCES)):
            distances = range(first, min(after, 40))
            if not len(distances):
                assert found[lam][bucket] is None
            else:
                assert found[lam][bucket] == pytest.approx(np.mean([lam**d for d in distances]), rel=1e-5)


def test_a_critic_that_knows_the_outcome_needs_no_signal_from_it() -> None:
    known = np.repeat(REWARDS, 40)
    found = reward_signal(known, REWARDS, CORRECT, CU)
    assert all(found[lam][0] == pytest.approx(1.0) and found[lam][2] == pytest.approx(1.0) for lam in LAMBDAS)


@pytest.mark.parametrize("correct", [[True, True], [False, False]])
def test_undefined_where_all_outcomes_are_alike(correct: list[bool]) -> None:
    found = reward_signal(np.zeros(80, np.float32), REWARDS, np.array(correct), CU)
    assert all(each is None for signal in found.values() for each in signal)


def test_empty_responses_are_no_trouble() -> None:
    cu = np.array([0, 0, 3, 6], np.int64)
    correct = np.array([True, True, False])
    found = reward_signal(np.zeros(6, np.float32), np.array([1.0, 1.0, -1.0], np.float32), correct, cu)
    assert found[1.0][0] == pytest.approx(1.0)

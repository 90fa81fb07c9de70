"""Weights and denominators of the three means."""

from __future__ import annotations

import numpy as np
import pytest

from vcppo.learner.algorithm.aggregation import loss_denominator, loss_weights

CU = np.array([0, 3, 3, 5, 7], np.int64)  # the second has no action
MASK = np.array([True, False, True, False, False, True, True])  # and of the third none is trained


@pytest.mark.parametrize(
    ("aggregation", "weights", "of_all", "of_two"),
    [
        ("token", [1, 0, 1, 0, 0, 1, 1], 4, 2),
        ("sequence", [0.5, 0, 0.5, 0, 0, 0.5, 0.5], 2, 1),
        ("fixed_length", [1, 0, 1, 0, 0, 1, 1], 40, 20),
    ],
)
def test_each_mean(aggregation, weights, of_all, of_two) -> None:
    assert loss_weights(MASK, CU, aggregation).tolist() == weights
    assert loss_denominator(MASK, CU, range(4), aggregation, 10) == of_all
    assert loss_denominator(MASK, CU, [2, 3], aggregation, 10) == of_two


def test_nothing_to_train_is_no_division_by_zero() -> None:
    none = np.zeros(7, bool)
    assert loss_denominator(none, CU, range(4), "token", 10) == loss_denominator(none, CU, [0], "sequence", 10) == 1
    assert not loss_weights(none, CU, "sequence").any()

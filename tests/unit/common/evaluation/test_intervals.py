"""Wilson's interval against the textbook."""

from __future__ import annotations

import pytest

from vcppo.common.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("successes", "n", "wanted"),
    [(50, 100, (0.4038, 0.5962)), (8, 10, (0.4902, 0.9433)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0))],
)
def test_against_the_textbook(successes: int, n: int, wanted: tuple[float, float]) -> None:
    assert wilson(successes, n) == pytest.approx(wanted, abs=1e-4)


def test_other_confidence() -> None:
    """z = 2.5758 by hand: centre (0.5 + z²/200) / (1 + z²/100) = 0.5, half 0.12475."""
    assert wilson(50, 100, 0.99) == pytest.approx((0.3753, 0.6247), abs=1e-4)


def test_of_nothing_it_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("successes", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (float("nan"), 2, 0.95)]
)
def test_what_has_no_meaning_is_refused(successes: float, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="successes="):
        wilson(successes, n, confidence)

"""A peer that repeats itself does not fill the log."""

from __future__ import annotations

from vcppo.common.telemetry.rate_limit import RateLimit


def test_lines_beyond_the_budget_are_counted_and_told_with_the_next_one() -> None:
    now = [0.0]
    budget = RateLimit(2, 10.0, lambda: now[0])
    assert [budget.take() for _ in range(5)] == [0, 0, None, None, None]
    now[0] = 9.9
    assert budget.take() is None
    now[0] = 10.0
    assert [budget.take() for _ in range(3)] == [4, 0, None]

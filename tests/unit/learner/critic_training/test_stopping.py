"""When the critic has had enough of a batch."""

from __future__ import annotations

import pytest

from vcppo.learner.critic_training.stopping import Stopping


def test_a_number_of_passes_is_done_whatever_is_measured() -> None:
    stopping = Stopping(passes=3, max_passes=2, max_seconds=None, min_rise=0.1, patience=1)
    assert [stopping.after(n, [], [1.0] * (n - 1)) for n in (1, 2, 3, 4)] == ["go_on", "go_on", *["max_passes"] * 2]


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ([0.1], "go_on"),
        ([0.1, 0.2], "go_on"),
        ([0.1, 0.2, 0.205], "no_rise"),  # less than min_rise
        ([0.3, 0.2], "no_rise"),
        ([0.3, 0.2, 0.3], "no_rise"),  # the best counts, not the last
        ([-0.5, -0.4], "go_on"),
        ([None], "no_rise"),
    ],
)
def test_automatic_passes_end_where_explained_variance_stops_rising(measured: list[float | None], verdict: str) -> None:
    stopping = Stopping(passes=None, max_passes=8, max_seconds=None, min_rise=0.01, patience=1)
    assert stopping.after(len(measured), measured, [1.0] * (len(measured) - 1)) == verdict


@pytest.mark.parametrize(
    ("measured", "verdict"),
    [
        ([0.3, 0.2], "go_on"),
        ([0.3, 0.2, 0.305], "no_rise"),
        ([0.3, 0.2, 0.31], "go_on"),  # one that helped: patience begins anew
        ([0.3, 0.2, 0.31, 0.3], "go_on"),
        ([0.3, 0.306, 0.312], "go_on"),  # small rises add up
        ([0.3, 0.306, 0.309], "no_rise"),
        ([None], "no_rise"),  # never will it vary
    ],
)
def test_patience_bears_what_is_noise_in_a_small_batch(measured: list[float | None], verdict: str) -> None:
    stopping = Stopping(passes=None, max_passes=8, max_seconds=None, min_rise=0.01, patience=2)
    assert stopping.after(len(measured), measured, [1.0] * (len(measured) - 1)) == verdict


def test_budgets_end_it() -> None:
    rising = [0.1 * n for n in range(9)]
    stopping = Stopping(passes=None, max_passes=8, max_seconds=10.0, min_rise=0.01, patience=1)
    assert stopping.after(8, rising[:8], [1.0] * 7) == "max_passes"
    assert stopping.after(3, rising[:3], [4.0, 3.0]) == "max_seconds"  # a third would end at 11 s
    assert stopping.after(3, rising[:3], [3.0, 3.0]) == "go_on"

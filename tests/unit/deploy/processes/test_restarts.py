"""Restarts are counted by cause, and a count ends with progress only."""

from __future__ import annotations

import pytest

from vcppo.deploy.processes.restarts import MOST_CAUSES, Restarts, cause_of


def test_each_cause_has_its_own_count() -> None:
    restarts = Restarts()
    for expected in (1, 2):
        assert restarts.may_restart("oom", 2)
        assert restarts.count("oom") == expected
    assert not restarts.may_restart("oom", 2)
    assert restarts.may_restart("disk", 2)
    assert restarts.count("disk") == 1
    assert (restarts.in_a_row, restarts.total) == (3, 3)


def test_ever_new_causes_end_too() -> None:
    restarts, number = Restarts(), 0
    while restarts.may_restart(f"cause {number}", 2):
        restarts.count(f"cause {number}")
        number += 1
    assert number == 2 * MOST_CAUSES


def test_progress_begins_all_counts_anew_and_the_total_stays() -> None:
    restarts = Restarts()
    restarts.count("oom")
    restarts.begin_anew()
    assert restarts.may_restart("oom", 1)
    assert (restarts.in_a_row, restarts.total) == (0, 1)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ((1, "no answer in 30.0 s from generator-0"), (1, "no answer in 31.52 s from generator-1"), True),
        ((1, "at 0x7f3a"), (1, "at 0x1b"), True),
        ((1, "disk full"), (1, "out of memory"), False),
        ((-9, ""), (-9, ""), True),
        ((-9, ""), (1, ""), False),
    ],
)
def test_a_cause_is_told_without_what_differs_each_time(
    one: tuple[int, str], other: tuple[int, str], same: bool
) -> None:
    assert (cause_of(*one) == cause_of(*other)) == same

"""The control port against hostile callers; the long version is ``python -m tests.fuzz control --runs 50000``."""

from __future__ import annotations

import os

from tests.fuzz.control import siege, victim

NUM_CALLS = 3000
SEED = 0 if "CI" in os.environ else int.from_bytes(os.urandom(4), "little")


def test_hostile_calls_are_answered_and_cost_nothing() -> None:
    with victim() as target:
        figures = siege(target, NUM_CALLS, SEED)
    assert figures.num_answers > NUM_CALLS * 0.8
    assert 0 < figures.num_accepted < figures.num_answers
    assert figures.resident_after < figures.resident_before + 20
    assert figures.is_good_one_answered

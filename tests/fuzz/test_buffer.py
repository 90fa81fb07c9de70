"""The buffer process against hostile peers; the long version is ``python -m tests.fuzz buffer --runs 50000``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.buffer import (
    MAX_DEAD_LETTERS,
    TRANSPORT,
    Target,
    attack,
    crowd,
    endless_message,
    good_trajectory_is_accepted,
    leave_while_it_waits,
    target,
)

NUM_MESSAGES = 4000
WINDOWS_MIB = 4 * TRANSPORT.credit_window * 2 * TRANSPORT.max_message_mib  # what four peers may have read ahead
SEED = 0 if "CI" in os.environ else int.from_bytes(os.urandom(4), "little")


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Target]:
    with target(tmp_path) as made:
        yield made


def test_hostile_messages_cost_dead_letters_and_nothing_else(victim: Target) -> None:
    figures = attack(victim, NUM_MESSAGES, SEED)
    assert NUM_MESSAGES // 2 < figures.dead_letters <= MAX_DEAD_LETTERS
    assert len(figures.reasons) > 10
    assert figures.resident_after < figures.resident_before + 20
    assert figures.resident_peak < figures.resident_before + WINDOWS_MIB + 20
    assert figures.log_bytes < 200_000  # a hundred lines, then a count
    assert figures.is_good_one_accepted


def test_a_crowd_of_connections_costs_time_only(victim: Target) -> None:
    """Without a file left to open, looking after its memory ended the buffer."""
    assert crowd(victim, num_files=64, num_connections=300)


def test_a_generator_killed_while_redis_is_away_does_not_end_the_buffer(victim: Target) -> None:
    """libzmq aborts the process when a heartbeat is due on a connection that broke with its queue full."""
    leave_while_it_waits(victim, 300)
    assert good_trajectory_is_accepted(victim)


def test_a_message_that_never_ends_is_cut_off(victim: Target) -> None:
    """It grew by 800 MiB for 800 MiB sent: ZeroMQ limits a frame, not how many make a message."""
    assert endless_message(victim, 1500)
    assert '"connections_cut"' in victim.log.read_text()
    assert good_trajectory_is_accepted(victim)

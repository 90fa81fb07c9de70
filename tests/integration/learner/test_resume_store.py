"""A learner resumes on a store that does not fit its checkpoint: older, or new."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.integration.common.store.test_store import a_prompt, an_entry
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.store import facts
from vcppo.common.store.run_store import RunStore, StoreChanged
from vcppo.learner.rl.resume import commit, plan_replay

if TYPE_CHECKING:
    from tests.integration.conftest import RedisServer

_RUNS = itertools.count()
CHECKPOINTS = Path("checkpoints")


@pytest.fixture
def store(shared_redis: RedisServer) -> RunStore:
    """Three steps of one prompt each: the first is committed, the others claimed."""
    made = shared_redis.store(f"resume-{next(_RUNS)}")
    made.issue([a_prompt(number) for number in range(5)])
    made.lease("g", 5, 60, 0)
    made.append([an_entry(f"p000{number}") for number in range(4)])
    for step in (1, 2, 3):
        made.claim([f"p000{step - 1}"], step)
    commit(made, ["p0000"], 1)
    return made


def test_what_a_crash_left_claimed_is_committed_and_the_rest_replayed(store: RunStore) -> None:
    assert plan_replay(store, 2, CHECKPOINTS) == {"version": 2, "claims": [[3, ["p0002"]]]}
    assert store.ledger().trained == 2


def test_a_crash_in_the_middle_of_a_commit_is_no_store_of_an_earlier_day(store: RunStore) -> None:
    """A commit goes out in parts; the first was done when the learner died, the one that says so was not."""
    store.commit(["p0001"])
    assert plan_replay(store, 3, CHECKPOINTS) == {"version": 3, "claims": []}
    assert (store.ledger().trained, facts.COMMITTED_STEP.read(store)) == (3, 3)


def test_what_is_settled_and_up_to_which_step_are_written_in_one(store: RunStore) -> None:
    """A learner that was killed in between found a checkpoint of which the store seemed to know nothing."""
    store.commit(["p0001", "p0002"], facts.COMMITTED_STEP.stored(3))
    assert plan_replay(store, 3, CHECKPOINTS) == {"version": 3, "claims": []}
    store.commit([], facts.COMMITTED_STEP.stored(4))  # a step of which nothing was left
    assert facts.COMMITTED_STEP.read(store) == 4


def test_a_store_of_an_earlier_day_than_the_checkpoint_is_refused(store: RunStore) -> None:
    with pytest.raises(
        StoreChanged, match=r"has step 5, and the store neither committed nor claimed step 4"
    ) as refused:
        plan_replay(store, 5, CHECKPOINTS)
    assert refused.value.exit_code == EXIT_REFUSED
    assert store.ledger().trained == 1  # nothing was touched


def test_a_new_store_is_begun_at_the_checkpoint_also_after_a_crash(shared_redis: RedisServer) -> None:
    new = shared_redis.store(f"resume-{next(_RUNS)}")
    assert plan_replay(new, 4, CHECKPOINTS) == {"version": 4, "claims": []}
    assert facts.COMMITTED_STEP.read(new) == 4
    new.issue([a_prompt(0)])
    assert plan_replay(new, 4, CHECKPOINTS) == {"version": 4, "claims": []}

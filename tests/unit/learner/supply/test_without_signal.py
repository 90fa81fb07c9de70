"""Which groups have no signal: oracles, and properties against the group estimators' own advantages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.store.ledger import Outstanding
from vcppo.learner.supply.collect import to_entries
from vcppo.learner.supply.credits import make_units
from vcppo.learner.supply.dynamic_sampling import find_without_signal, look_at


def group(
    name: str, responses: Sequence[tuple[float | None, bool | None]], state: str = "buffered"
) -> list[Outstanding]:
    return [
        Outstanding(f"{name}-{i}", name, 0, state, 0, 30, None, f"t{i}", 20, reward, correct)  # type: ignore[arg-type]
        for i, (reward, correct) in enumerate(responses)
    ]


RIGHT, WRONG = (1.0, True), (-1.0, False)


@pytest.mark.parametrize(
    ("responses", "by", "kind", "reason"),
    [
        ([RIGHT] * 4, "rewards", "all_correct", "no signal: all 4 rewards are 1.0"),
        ([WRONG] * 3, "rewards", "all_wrong", "no signal: all 3 rewards are -1.0"),
        ([(0.5, True), (0.5, False)], "rewards", "same_reward", "no signal: all 2 rewards are 0.5"),
        ([(0.5, True), (0.5, False)], "outcomes", "same_reward", "no signal: all 2 rewards are 0.5"),
        ([(0.9, True), (1.0, True)], "outcomes", "all_correct", "no signal: all 2 responses are correct"),
        ([(-0.9, False), (0.1, False)], "outcomes", "all_wrong", "no signal: none of 2 responses is correct"),
        ([(0.9, True), (1.0, True)], "rewards", None, ""),
        ([RIGHT, WRONG], "rewards", None, ""),
        ([RIGHT, WRONG], "outcomes", None, ""),
        ([RIGHT, (None, None)], "rewards", None, ""),  # buffered by a version that noted no rewards
        ([(None, None)] * 2, "outcomes", None, ""),
    ],
)
def test_what_has_no_signal(
    responses: list[tuple[float | None, bool | None]], by: str, kind: str | None, reason: str
) -> None:
    found = look_at(group("g", responses), by)
    assert (found and found.kind, found.reason if found else "") == (kind, reason)
    if found:
        num = len(responses)
        num_correct = sum(correct is True for _, correct in responses)
        assert found[3:] == (num, num_correct, 30 * num, 20 * num)


def test_only_whole_groups_that_have_arrived_are_looked_at() -> None:
    outstanding = [
        *group("done", [RIGHT] * 2),
        *group("late", [RIGHT], "leased"),
        *group("late", [RIGHT, RIGHT])[1:],
        *group("shrunk", [RIGHT]),  # it lost one, and waits for its replacement
        *group("claimed", [RIGHT] * 2, "claimed"),
        *group("mixed", [RIGHT, WRONG]),
    ]
    units = make_units(to_entries(outstanding), 2, 1)
    assert [each.group_id for each in find_without_signal(units, outstanding, "rewards")] == ["done"]


@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.1, 1.0]), st.booleans()), min_size=2, max_size=8))
def test_by_rewards_it_is_exactly_what_a_group_baseline_makes_zero_of(responses: list[tuple[float, bool]]) -> None:
    rewards = np.array([reward for reward, _ in responses])
    advantages = rewards - rewards.mean()
    others = (rewards.sum() - rewards) / (len(rewards) - 1)
    left_out = look_at(group("g", responses), "rewards") is not None
    assert left_out == bool(np.allclose(advantages, 0)) == bool(np.allclose(rewards - others, 0))
    assert left_out <= (look_at(group("g", responses), "outcomes") is not None)

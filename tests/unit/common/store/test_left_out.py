"""The account of groups without signal: sums, names of open steps, and what is read back is what was written."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.errors import VcppoError
from vcppo.common.store.left_out import KINDS, Account, LeftOut, Sums, sums_of

RIGHT = LeftOut("rl-00000003", "all_correct", "no signal: all 4 rewards are 1.0", 4, 4, 100, 60)
WRONG = LeftOut("rl-00000004", "all_wrong", "no signal: all 4 rewards are -1.0", 4, 0, 90, 50)
ALIKE = LeftOut("rl-00000007", "same_reward", "no signal: all 4 rewards are 0.5", 4, 2, 80, 40)


def test_it_names_the_groups_of_open_steps_and_sums_up_all() -> None:
    account = Account().adding(3, [RIGHT, WRONG], committed=0).adding(3, [ALIKE], committed=0)
    assert account.steps == {3: [RIGHT, WRONG, ALIKE]}
    assert account.newest == "rl-00000007: no signal: all 4 rewards are 0.5"
    later = account.adding(5, [RIGHT], committed=3)
    assert later.steps == {5: [RIGHT]}
    assert later.totals == {
        "all_correct": Sums(2, 8, 8, 200, 120),
        "all_wrong": Sums(1, 4, 0, 90, 50),
        "same_reward": Sums(1, 4, 2, 80, 40),
    }
    assert later.total == Sums(4, 16, 10, 370, 210)


def test_none_is_an_empty_one() -> None:
    assert Account.loads(None) == Account()
    assert Account().total == Sums()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"steps": {"x": []}, "totals": {}, "newest": ""}', '{"steps": {"1": [[1]]}}', "9" * 5000]
)
def test_what_another_program_wrote_is_one_line(text: str) -> None:
    with pytest.raises(VcppoError, match="account of groups without signal can't be read"):
        Account.loads(text)


groups = st.builds(
    LeftOut, st.text(max_size=12), st.sampled_from(KINDS), st.text(max_size=20), *[st.integers(0, 10**6)] * 4
)


@given(st.lists(st.tuples(st.integers(1, 6), st.lists(groups, min_size=1, max_size=3), st.integers(0, 6)), max_size=6))
def test_it_is_read_as_it_was_written_and_totals_never_forget(
    calls: list[tuple[int, list[LeftOut], int]],
) -> None:
    account, everything = Account(), []
    for step, found, committed in calls:
        account = account.adding(step, found, committed)
        everything += found
        assert Account.loads(account.dumps()) == account
        assert account.steps[step][-len(found) :] == found
        assert all(number > committed or number == step for number in account.steps)
    assert account.total == sums_of(everything)

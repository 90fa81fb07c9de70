"""`vcppo ledger`: groups that dynamic sampling left out are no faults, and are named."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from vcppo.common.store import facts
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.left_out import Account, LeftOut
from vcppo.deploy.terminal.ledger_command import left_out_line, print_ledger
from vcppo.deploy.terminal.live_view import trajectories_panel

RIGHT = LeftOut("rl-00000003", "all_correct", "no signal: all 4 rewards are 1.0", 4, 4, 1100, 1060)
WRONG = LeftOut("rl-00000004", "all_wrong", "no signal: all 4 rewards are -1.0", 4, 0, 900, 850)
LEDGER = Ledger(issued=20, trained=11, rejected=9, without_signal=8)


def shown(ledger: Ledger, account: Account) -> str:
    values = {facts.LEFT_OUT.name: account.dumps()}
    store: Any = SimpleNamespace(ledger=lambda: ledger, dead_letters=list, get_value=values.get)
    out = io.StringIO()
    assert print_ledger(store, Console(file=out, width=200))
    return out.getvalue()


def test_they_are_counted_apart_and_the_newest_is_named() -> None:
    text = shown(LEDGER, Account().adding(1, [RIGHT, WRONG], 0))
    assert "8  of the rejected: left out by dynamic sampling, no fault" in text
    assert (
        "without signal: 2 groups (1 all correct, 1 all wrong); 1,910 response tokens generated, 2,000 tokens not"
        " trained; the newest: rl-00000004: no signal: all 4 rewards are -1.0"
    ) in text


def test_without_dynamic_sampling_nothing_is_said_of_it() -> None:
    assert left_out_line(Account()) == ""
    assert "without" not in shown(Ledger(issued=1, trained=1), Account()).replace("or without signal", "")


def test_the_live_view_does_not_show_them_as_lost() -> None:
    out = io.StringIO()
    Console(file=out, width=120).print(trajectories_panel(LEDGER, 16))
    assert "1 rejected, 0 expired, 8 left out without signal" in out.getvalue()

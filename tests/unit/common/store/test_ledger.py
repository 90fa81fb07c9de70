"""The ledger's arithmetic and its words."""

from vcppo.common.store.ledger import Ledger


def test_exact_when_every_prompt_is_in_one_state() -> None:
    ledger = Ledger(issued=10, queued=1, leased=2, buffered=1, claimed=1, trained=3, rejected=1, expired=1)
    assert ledger.is_exact
    assert ledger.outstanding == 5
    assert str(ledger).endswith("(exact)")


def test_groups_without_signal_are_told_apart_from_faults() -> None:
    ledger = Ledger(issued=12, trained=6, rejected=5, expired=1, without_signal=4)
    assert ledger.is_exact
    assert "+ 5 rejected (4 without signal) + 1 expired (exact)" in str(ledger)


def test_evaluations_are_told_where_there_are_some() -> None:
    ledger = Ledger(issued=12, trained=6, queued=2, evaluated=4)
    assert ledger.is_exact and ledger.outstanding == 2
    assert "+ 0 expired + 4 evaluated (exact)" in str(ledger)
    assert "evaluated" not in str(Ledger(issued=1, trained=1))
    assert ledger.fewer_than(Ledger(issued=12, trained=6, evaluated=5)) == "evaluated was 5, is 4"


def test_a_lost_and_a_doubled_prompt_show() -> None:
    assert Ledger(issued=2, queued=1).difference == 1
    assert Ledger(issued=1, queued=1, trained=1).difference == -1
    assert "NOT exact: off by 1" in str(Ledger(issued=2, queued=1))

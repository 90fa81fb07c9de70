"""`vcppo ledger`: where every prompt of a run is, and whether the accounts are exact."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from vcppo.common.store import facts
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.left_out import Account, Kind
from vcppo.common.store.run_store import RunStore
from vcppo.common.text.yaml_text import one_line

MEANING = {
    "issued": "by the learner, ever",
    "queued": "waiting for a generator",
    "leased": "being generated",
    "buffered": "waiting for the learner",
    "claimed": "trained on, not yet in a durable checkpoint",
    "trained": "in a durable checkpoint",
    "rejected": "refused as invalid (dead letters), or without signal",
    "expired": "dropped as stragglers",
    "evaluated": "held-out problems answered during training, never trained",
    "without_signal": "of the rejected: left out by dynamic sampling, no fault",
}


KIND_NAMES: dict[Kind, str] = {
    "all_correct": "all correct",
    "all_wrong": "all wrong",
    "same_reward": "of one reward",
}


def ledger_table(ledger: Ledger) -> Table:
    """One line per state."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("prompts")
    table.add_column("count", justify="right")
    table.add_column("", style="bright_black")
    for state, count in ledger.as_dict().items():
        if state in ("evaluated", "without_signal") and not count:
            continue
        table.add_row(state, f"{count:,}", MEANING[state])
    return table


def print_ledger(store: RunStore, console: Console) -> bool:
    """Table, dead letters and verdict. Returns whether the ledger is exact."""
    ledger, letters = store.ledger(), store.dead_letters()
    console.print(ledger_table(ledger))
    verdict = (
        "[green]exact[/]"
        if ledger.is_exact
        else f"[red]NOT exact: issued differs from the sum by {ledger.difference:+d}[/]"
    )
    console.print(f"\nissued = sum of the other {'eight' if ledger.evaluated else 'seven'}: {verdict}")
    if account := left_out_line(Account.loads(facts.LEFT_OUT.read(store))):
        console.print(account, markup=False, highlight=False)
    if letters:
        newest = one_line(f"{letters[0].reason}: {letters[0].detail}", 1000)  # a peer's words: no markup, no escapes
        console.print(f"{len(letters)} dead letters; the newest: {newest}", markup=False, highlight=False)
    return ledger.is_exact


def left_out_line(account: Account) -> str:
    """What dynamic sampling left out since the run began; empty: nothing."""
    total = account.total
    if not total.groups:
        return ""
    kinds = ", ".join(f"{sums.groups:,} {KIND_NAMES[kind]}" for kind, sums in account.totals.items())
    spent = f"{total.response_tokens:,} response tokens generated, {total.tokens:,} tokens not trained"
    return f"without signal: {total.groups:,} groups ({kinds}); {spent}; the newest: {one_line(account.newest, 200)}"

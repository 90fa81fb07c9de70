"""What Redis holds, as metrics of the buffer that reads it. Pure; no I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vcppo.common.store.run_store import Ledger, Member, Memory

_SETTLED = ("trained", "rejected", "expired", "evaluated", "without_signal")


class StoreState(NamedTuple):
    """One look at the store."""

    ledger: Ledger
    memory: Memory
    num_dead_letters: int
    members: Sequence[Member]


def store_metrics(state: StoreState, num_credits: int) -> Mapping[str, float | None]:
    """By the names of `vcppo.common.telemetry.metric_names`. ``num_credits``: of `RlConfig`."""
    ledger = state.ledger
    by_role = Counter(member.role for member in state.members)
    return {
        "store/up": 1.0,
        **{f"store/queue/{name}": float(getattr(ledger, name)) for name in ("queued", "leased", "buffered", "claimed")},
        **{f"store/settled/{name}": float(getattr(ledger, name)) for name in _SETTLED},
        "store/ledger_difference": float(ledger.difference),
        "store/credits_used": float(ledger.credits_used),
        "store/credits": float(num_credits),
        "store/dead_letters": float(state.num_dead_letters),
        "store/memory_bytes": float(state.memory.used),
        "store/memory_limit_bytes": float(state.memory.limit),
        **{f"store/members/{role}": float(by_role[role]) for role in ("generator", "buffer")},
    }

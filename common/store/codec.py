"""What the store sends and gets back, without a connection: scripts, batches, and replies made into records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack

from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import encode_prompt
from vcppo.common.store.ledger import BufferEntry, DeadLetter, Member, Outstanding, PromptState
from vcppo.common.text.yaml_text import one_line

FLUSH_BYTES = 512 * 1024
"""Batches go out when they are this big: fewer round trips and syncs, and still nothing Redis is long busy with."""
DEAD_LETTER_BYTES = 4096
"""How much of a refused payload is kept."""

# The keys of a run, in the order of KEYS in lua/_library.lua.
LEDGER_KEYS = [
    *("queue", "leases", "owners", "attempts", "prompts", "order", "facts"),
    *("buffered", "arrivals", "payloads", "claimed", "claim_steps", "counters", "settled"),
    *("issued", "appended", "dead_letters", "none"),
]
MEMBER_KEYS = ["members", "member_deadlines", "values"]
MEMBER_SCRIPTS = ["register_member", "members", "set_value"]
LEDGER_SCRIPTS = [
    *("issue", "lease", "renew", "return", "expire_leases", "append", "await"),
    *("reject", "expire", "claim", "commit", "ledger", "dead_letter"),
]
STATE_KEYS: dict[PromptState, str] = {
    "queued": "queue",
    "leased": "leases",
    "buffered": "buffered",
    "claimed": "claimed",
}
FACT_KEYS = ["order", "facts", "arrivals", "claim_steps"]

_MAX_LIST = 1024
_MEMBER_TYPES = {"id": str, "role": str, "control_endpoint": str, "policy_version": int, "epoch": int, "info": dict}

_LUA = Path(__file__).parent / "lua"


def scripts() -> dict[str, str]:
    """name -> Lua source of every script."""
    library = (_LUA / "_library.lua").read_text()
    sources = {name: library + (_LUA / f"{name}.lua").read_text() for name in LEDGER_SCRIPTS}
    return sources | {name: (_LUA / f"{name}.lua").read_text() for name in MEMBER_SCRIPTS}


def issue_args(prompt: Prompt) -> tuple[str, bytes, bytes]:
    """(id, message, facts) of a prompt to issue."""
    return prompt.id, encode_prompt(prompt), msgpack.packb([prompt.group_id, prompt.issue_version])


def append_args(entry: BufferEntry) -> tuple[str, bytes, bytes, bytes]:
    """(prompt id, payload, arrival facts, what its prompt must have been issued as) of a trajectory to buffer."""
    facts = msgpack.packb([entry.trajectory_id, entry.oldest_version, entry.num_tokens])
    return entry.prompt_id, entry.payload, facts, msgpack.packb([entry.group_id, entry.issue_version])


def batches(items: Iterable[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """Split into batches of about `FLUSH_BYTES` (an int in an item stands for that many bytes); none is empty."""
    batch: list[tuple[Any, ...]] = []
    size = 0
    for item in items:
        batch.append(item)
        size += sum(part if isinstance(part, int) else len(part) for part in item)
        if size >= FLUSH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def flatten(batch: list[tuple[Any, ...]]) -> list[Any]:
    """All parts of all items in one list: the arguments of one Redis command."""
    return [part for item in batch for part in item]


def texts(reply: Iterable[bytes]) -> list[str]:
    """A Redis reply of byte strings as text (UTF-8)."""
    return [item.decode() for item in reply]


def outstanding_from(ids_by_state: list[list[bytes]], facts_by_kind: list[dict[bytes, bytes]]) -> list[Outstanding]:
    """Merge the members of the four states (`STATE_KEYS`) and the facts (`FACT_KEYS`); in issue order."""
    order, facts, arrivals, steps = facts_by_kind
    found: list[tuple[int, Outstanding]] = []
    for state, ids in zip(STATE_KEYS, ids_by_state, strict=True):
        for raw in ids:
            group_id, issue_version = msgpack.unpackb(facts[raw])
            trajectory_id, oldest, num_tokens = msgpack.unpackb(arrivals[raw]) if raw in arrivals else (None,) * 3
            step = int(steps[raw]) if raw in steps else None
            entry = Outstanding(raw.decode(), group_id, issue_version, state, oldest, num_tokens, step, trajectory_id)
            found.append((int(order[raw]), entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def claims_from(ids: list[bytes], steps: dict[bytes, bytes]) -> dict[int, list[str]]:
    """step -> prompt ids, from ids in claim order."""
    claims: dict[int, list[str]] = {}
    for raw in ids:
        claims.setdefault(int(steps[raw]), []).append(raw.decode())
    return dict(sorted(claims.items()))


def dead_letter_from(row_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    """Whatever it holds: it is read when something is wrong already."""
    text = {name: fields.get(name.encode(), b"").decode(errors="replace") for name in ("reason", "detail", "source")}
    size = fields.get(b"size", b"")
    payload = fields.get(b"payload", b"")
    return DeadLetter(
        id=row_id.decode(),
        time=int(row_id.split(b"-")[0]) / 1000,
        **text,
        size=int(size) if size.isdigit() and len(size) < 20 else len(payload),
        payload=payload,
    )


def member_from(packed: bytes) -> Member:
    """The member in `packed`; ValueError for anything else: every member writes its own entry."""
    try:
        found = msgpack.unpackb(packed, max_array_len=_MAX_LIST)
        member = Member(**found)
    except (TypeError, ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ValueError(f"not a member: {one_line(error)}") from error
    for name, kind in _MEMBER_TYPES.items():
        if type(getattr(member, name)) is not kind:
            raise ValueError(f"not a member: its {name} is no {kind.__name__}")
    return member


def redact(url: str) -> str:
    """The URL without its user and password."""
    scheme, separator, rest = url.partition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}{separator}{'***@' if at else ''}{host}"

"""What the store sends and gets back, without a connection: scripts, batches, and replies made into records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgpack

from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import encode_prompt, tokens_digest
from vcppo.common.store.ledger import BufferEntry, DeadLetter, Member, Outstanding, PromptState
from vcppo.common.text.yaml_text import one_line

FLUSH_BYTES = 512 * 1024
"""Batches go out when they are this big: fewer round trips and syncs, and still nothing Redis is long busy with."""
DEAD_LETTER_BYTES = 4096
"""How much of a refused payload is kept."""

# The keys of a run, in the order of KEYS in lua/_library.lua.
KEYS = [
    *("queue", "leases", "owners", "attempts", "prompts", "order", "facts"),
    *("buffered", "arrivals", "payloads", "claimed", "claim_steps", "counters", "settled"),
    *("issued", "appended", "dead_letters", "none"),
    *("members", "member_deadlines", "values", "clock", "incarnations"),
]
SCRIPTS = [
    *("issue", "lease", "renew", "return", "expire_leases", "append", "await"),
    *("reject", "leave_out", "expire", "claim", "commit", "evaluate", "ledger", "dead_letter"),
    *("register_member", "members", "set_value", "enter"),
]
STATE_KEYS: dict[PromptState, str] = {
    "queued": "queue",
    "leased": "leases",
    "buffered": "buffered",
    "claimed": "claimed",
}
FACT_KEYS = ["order", "facts", "arrivals", "claim_steps"]

_MAX_LIST = 1024
_OPEN = b""  # in place of the digest of a prompt's tokens: an agent makes its own
_MEMBER_TYPES = {"id": str, "role": str, "control_endpoint": str, "policy_version": int, "epoch": int, "info": dict}

_LUA = Path(__file__).parent / "lua"


def scripts() -> dict[str, str]:
    """name -> Lua source of every script."""
    library = (_LUA / "_library.lua").read_text()
    return {name: library + (_LUA / f"{name}.lua").read_text() for name in SCRIPTS}


def issue_args(prompt: Prompt) -> tuple[str, bytes, bytes]:
    """(id, message, facts) of a prompt to issue."""
    told = [prompt.sample_index, prompt.task, _OPEN if prompt.is_open else tokens_digest(prompt.token_ids)]
    return prompt.id, encode_prompt(prompt), msgpack.packb([prompt.group_id, prompt.issue_version, *told])


def append_args(entry: BufferEntry) -> tuple[str, bytes, bytes, bytes, bytes, bytes]:
    """(prompt id, payload, arrival facts, what its prompt must have been issued as, the same of an open prompt, the
    same in the form of a version that did not know samples, tasks and digests) of a trajectory to buffer. What has
    segments must have been issued as an open prompt."""
    made = [entry.trajectory_id, entry.oldest_version, entry.num_tokens]
    facts = msgpack.packb([*made, entry.num_response, float(entry.reward), entry.is_correct])
    issued = [entry.group_id, entry.issue_version]
    told = [*issued, entry.sample_index, entry.task]
    opened_form = [*told, _OPEN]
    forms = ([*told, entry.prompt_digest], opened_form, issued) if not entry.num_segments else (opened_form,) * 3
    closed, opened, old = (msgpack.packb(form) for form in forms)
    return entry.prompt_id, entry.payload, facts, closed, opened, old


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


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Around taking apart what Redis holds. Raises VcppoError where it is not what this program writes there."""
    try:
        yield
    except (KeyError, ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise VcppoError(
            f"the store's {what} can't be read ({type(error).__name__}: {one_line(error)}): another program wrote "
            "there; restore the store from a backup, or start a new run under another run.name"
        ) from error


def outstanding_from(ids_by_state: list[list[bytes]], facts_by_kind: list[dict[bytes, bytes]]) -> list[Outstanding]:
    """Merge the members of the four states (`STATE_KEYS`) and the facts (`FACT_KEYS`); in issue order."""
    order, facts, arrivals, steps = facts_by_kind
    found: list[tuple[int, Outstanding]] = []
    with reading("list of open prompts"):
        for state, ids in zip(STATE_KEYS, ids_by_state, strict=True):
            for raw in ids:
                group_id, issue_version = msgpack.unpackb(facts[raw])[:2]
                arrival = msgpack.unpackb(arrivals[raw]) if raw in arrivals else (None,) * 3
                trajectory_id, oldest, num_tokens, *verdict = arrival
                step = int(steps[raw]) if raw in steps else None
                entry = Outstanding(
                    raw.decode(), group_id, issue_version, state, oldest, num_tokens, step, trajectory_id
                )
                if verdict:  # an older version noted none
                    num_response, reward, is_correct = verdict
                    entry = entry._replace(
                        num_response=int(num_response), reward=float(reward), is_correct=bool(is_correct)
                    )
                found.append((int(order[raw]), entry))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def claims_from(ids: list[bytes], steps: dict[bytes, bytes]) -> dict[int, list[str]]:
    """step -> prompt ids, from ids in claim order."""
    claims: dict[int, list[str]] = {}
    with reading("list of claimed prompts"):
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

"""Everything of a run that must survive, in Redis: prompts, leases, trajectories and the ledger.

The life of a prompt; each arrow is one atomic, repeatable Lua script (``common/store/lua``)::

    issue ─▶ queued ─lease─▶ leased ─append─▶ buffered ─claim─▶ claimed ─commit─▶ trained
                ▲ └───────────│──│──── append (a late trajectory of an expired lease)
                └─ returned, expired lease
    queued|leased ─expire─▶ expired          leased|buffered|claimed ─reject─▶ rejected

A trajectory is accepted exactly when its prompt is queued or leased: so each prompt is trained once,
whoever resends what. Settled prompts leave nothing behind but their id: the newest 8,192 of them, or four times the
most that were ever unsettled at once, if that is more.

Waiting is ``XREAD BLOCK`` on two short notification streams: a generator waits for prompts, the learner
for trajectories; nobody polls. A Redis that is away or full is `vcppo.common.store.redis_connection`'s to bear with.
Keys are ``vcppo:{<run_id>}:<name>``; the braces keep a run in one slot of a Redis cluster.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, cast

import msgpack
import structlog

from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import decode_prompt
from vcppo.common.store.codec import (
    DEAD_LETTER_BYTES,
    FACT_KEYS,
    LEDGER_KEYS,
    MEMBER_KEYS,
    STATE_KEYS,
    append_args,
    batches,
    claims_from,
    dead_letter_from,
    flatten,
    issue_args,
    member_from,
    outstanding_from,
    scripts,
    texts,
)
from vcppo.common.store.ledger import AppendResult, BufferEntry, DeadLetter, Ledger, Member, Outstanding
from vcppo.common.store.redis_connection import (
    Credentials,
    Memory,
    RedisConnection,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

__all__ = [
    "AppendResult",
    "BufferEntry",
    "Credentials",
    "DeadLetter",
    "Ledger",
    "Member",
    "Outstanding",
    "Memory",
    "RunStore",
    "StoreError",
    "StoreFull",
    "StoreUnavailable",
]

log = structlog.get_logger(__name__)

STORE_SCHEMA_VERSION = "1"
MAX_LEASE_EXPIRIES = 5
"""A prompt whose leases expire this often kills its generators: it is rejected."""
_GUESSED_BYTES = 4096  # of a payload, to size a batch


class RunStore:
    """One run's key space. Make it with `connect`."""

    def __init__(self, connection: RedisConnection, run_id: str) -> None:
        self._redis = connection
        self._prefix = f"vcppo:{{{run_id}}}:"
        self._keys = [self._prefix + name for name in LEDGER_KEYS]
        self._member_keys = [self._prefix + name for name in MEMBER_KEYS]
        self._append_cursor = "0-0"
        connection.register(scripts())

    @classmethod
    def connect(
        cls,
        url: str,
        run_id: str,
        deadline_seconds: float,
        *,
        patience_seconds: float = 30.0,
        credentials: Credentials = Credentials(),  # noqa: B008
    ) -> RunStore:
        """The store of `run_id` at `url`, which must answer within `deadline_seconds`.

        Later calls bear with a Redis that is away for `patience_seconds`. Raises `StoreError` naming the
        URL and the remedy, also when the run was written with another schema version.
        """
        connection = RedisConnection.connect(
            url, deadline_seconds, patience_seconds=patience_seconds, credentials=credentials
        )
        store = cls(connection, run_id)
        store._check_schema()
        connection.refuse_eviction()
        return store

    def close(self) -> None:
        """Close the connection; what is stored stays."""
        self._redis.close()

    # ------------------------------------------------------------------ learner: issue

    def issue(self, prompts: Sequence[Prompt]) -> int:
        """Put new prompts at the end of the queue; those issued before are left as they are. How many were new."""
        num_new = sum(int(self._run("issue", *flatten(batch))) for batch in batches(map(issue_args, prompts)))
        _trace("prompts_issued", num_new=num_new, prompt_ids=[prompt.id for prompt in prompts])
        return num_new

    # ------------------------------------------------------------------ generators: leases

    def lease(self, generator_id: str, count: int, lease_seconds: float, wait_seconds: float) -> list[Prompt]:
        """Up to `count` of the oldest queued prompts, leased to `generator_id` for `lease_seconds`.

        Expired leases of anyone are put back first. With nothing queued it waits up to `wait_seconds`
        for a prompt to be issued, returned or to expire; then returns an empty list.
        """
        if count <= 0:
            return []
        deadline = time.monotonic() + wait_seconds
        while True:
            newest, next_expiry_ms, *payloads = self._run(
                "lease", generator_id, count, int(lease_seconds * 1000), MAX_LEASE_EXPIRIES
            )
            remaining = deadline - time.monotonic()
            if payloads or remaining <= 0:
                prompts = [decode_prompt(payload) for payload in payloads]
                if prompts:
                    _trace("prompts_leased", prompt_ids=[prompt.id for prompt in prompts])
                return prompts
            if next_expiry_ms >= 0:
                remaining = min(remaining, next_expiry_ms / 1000 + 0.001)
            self._wait("issued", newest, remaining)

    def renew_leases(self, generator_id: str, prompt_ids: Sequence[str], lease_seconds: float) -> list[str]:
        """Hold these leases for another `lease_seconds`. Returns the ids that are no longer the generator's."""
        if not prompt_ids:
            return []
        return texts(self._run("renew", generator_id, int(lease_seconds * 1000), *prompt_ids))

    def return_leases(self, generator_id: str, prompt_ids: Sequence[str] | None = None) -> int:
        """Put leased prompts back at their old place in the queue; None: all of this generator's. How many."""
        which = "all" if prompt_ids is None else "these"
        return int(self._run("return", generator_id, which, *(prompt_ids or ())))

    def requeue_expired_leases(self) -> list[str]:
        """Put prompts whose lease expired back in the queue; their ids. `lease` does it too.

        After `MAX_LEASE_EXPIRIES` times a prompt is rejected instead, with a dead letter.
        """
        return texts(self._run("expire_leases", MAX_LEASE_EXPIRIES))

    def lease_owners(self) -> dict[str, str]:
        """Prompt id -> the generator that holds its lease: whom a wait is on."""
        owners = self._redis.call("lease_owners", lambda client: client.hgetall(self._prefix + "owners"))
        pairs = cast(dict[bytes, bytes], owners).items()
        return {prompt_id.decode(): owner.decode() for prompt_id, owner in pairs}

    # ------------------------------------------------------------------ buffer: arrivals

    def append(self, entries: Sequence[BufferEntry]) -> list[AppendResult]:
        """Buffer trajectories, each exactly once.

        ``accepted``: its prompt was queued or leased. ``duplicate``: that prompt has its trajectory, or is
        settled. ``unknown``: it was never issued, or settled long ago. ``mismatch``: it was issued in another
        group or at another version than the trajectory says. Batched by bytes.
        """
        results: list[str] = []
        for batch in batches(map(append_args, entries)):
            results += texts(self._run("append", *flatten(batch)))
        _trace("trajectories_appended", results=results, trajectory_ids=[entry.trajectory_id for entry in entries])
        return cast(list[AppendResult], results)

    def reject(
        self, prompt_id: str, reason: str, *, detail: str = "", payload: bytes = b"", leased_by: str | None = None
    ) -> bool:
        """Give a leased, buffered or claimed prompt up, with a dead letter; False if it is in no such state.

        With `leased_by` only a lease of that generator is given up: what a peer sends can't undo the
        work of another.
        """
        head = payload[:DEAD_LETTER_BYTES]
        detail = f"{prompt_id}: {detail}" if detail else prompt_id
        return bool(self._run("reject", prompt_id, reason, detail[:1024], leased_by or "", len(payload), head))

    def dead_letter(self, reason: str, detail: str, source: str, payload: bytes = b"") -> None:
        """Keep what was refused: why, from whom, its size and its first `DEAD_LETTER_BYTES`. The newest 10,000 stay."""
        head = payload[:DEAD_LETTER_BYTES]
        self._run("dead_letter", reason[:256], detail[:1024], source[:256], len(payload), head)

    def dead_letters(self, count: int = 100) -> list[DeadLetter]:
        """The newest `count` dead letters, newest first."""
        key = self._prefix + "dead_letters"
        rows: Any = self._redis.call("dead_letters", lambda client: client.xrevrange(key, count=count))
        return [dead_letter_from(row_id, fields) for row_id, fields in rows]

    def num_dead_letters(self) -> int:
        """How many of them are kept."""
        key = self._prefix + "dead_letters"
        return int(self._redis.call("num_dead_letters", lambda client: client.xlen(key)))

    # ------------------------------------------------------------------ learner: batches

    def expire(self, prompt_ids: Sequence[str], reason: str) -> list[str]:
        """Drop queued or leased prompts; returns those that were. Their late trajectories are duplicates."""
        if not prompt_ids:
            return []
        expired = texts(self._run("expire", *prompt_ids))
        if expired:
            log.info("prompts_expired", count=len(expired), reason=reason, prompt_ids=expired[:8])
        return expired

    def outstanding(self) -> list[Outstanding]:
        """Every prompt that is issued and not settled, in issue order, at one instant."""

        def queue(pipeline: Any) -> None:
            for name in STATE_KEYS.values():
                pipeline.zrange(self._prefix + name, 0, -1)
            for name in FACT_KEYS:
                pipeline.hgetall(self._prefix + name)

        reply = self._redis.transaction("outstanding", queue)
        return outstanding_from(reply[: len(STATE_KEYS)], reply[len(STATE_KEYS) :])

    def wait_for_append(self, timeout_seconds: float) -> bool:
        """Wait until a trajectory was buffered (or a prompt rejected) since the last call; False if none was.

        The first call returns at once when anything ever was. For one waiting thread per run.
        """
        deadline = time.monotonic() + timeout_seconds
        self._run("await")
        while True:
            newest = self._wait("appended", self._append_cursor, deadline - time.monotonic())
            if newest is not None:
                self._append_cursor = newest
                return True
            if time.monotonic() >= deadline:
                return False

    def wait_for_all(self, prompt_ids: Sequence[str], timeout_seconds: float) -> bool:
        """Wait until these are all buffered, or one of them is settled instead; False if neither came in time.

        Only a rejection wakes us besides; appends do when they might end the wait. For one waiting thread per run.
        """
        deadline = time.monotonic() + timeout_seconds
        while True:
            newest, num_missing = self._run("await", *prompt_ids)
            if not num_missing:
                return True
            if time.monotonic() >= deadline:
                return False
            self._wait("appended", newest, deadline - time.monotonic())

    def claim(self, prompt_ids: Sequence[str], step: int) -> list[bytes]:
        """Take these buffered trajectories for `step`, all or none (`StoreError`); their payloads in that order.

        Claiming the same for the same step again is allowed: so a crash after it can be replayed.
        """
        if not prompt_ids:
            return []
        accepted, *reply = self._run("claim", step, *prompt_ids)
        if not accepted:
            raise StoreError(f"claim for step {step}: prompt {reply[0].decode()} is not buffered, nothing was claimed")
        _trace("prompts_claimed", step=step, prompt_ids=list(prompt_ids))
        return self._fetch(prompt_ids, reply)

    def claimed(self) -> dict[int, list[str]]:
        """step -> prompt ids in the order they were claimed: what a learner that crashed must replay."""

        def queue(pipeline: Any) -> None:
            pipeline.zrange(self._prefix + "claimed", 0, -1)
            pipeline.hgetall(self._prefix + "claim_steps")

        ids, steps = self._redis.transaction("claimed", queue)
        return claims_from(ids, steps)

    def payloads(self, prompt_ids: Sequence[str]) -> list[bytes]:
        """The wire form of these buffered or claimed trajectories. `StoreError` if one is in neither state."""
        return self._fetch(prompt_ids, [_GUESSED_BYTES] * len(prompt_ids))

    def commit(self, prompt_ids: Sequence[str]) -> int:
        """A durable checkpoint holds these claimed trajectories' effect: count them as trained and delete them.

        Returns how many were claimed until now; committing again changes nothing.
        """
        num_new = sum(int(self._run("commit", *flatten(batch))) for batch in batches((i,) for i in prompt_ids))
        _trace("prompts_committed", num_new=num_new, prompt_ids=list(prompt_ids))
        return num_new

    def memory(self) -> Memory:
        """How full Redis is."""
        return self._redis.memory()

    def ledger(self) -> Ledger:
        """The accounts at this instant."""
        return Ledger(*map(int, self._run("ledger")))

    # ------------------------------------------------------------------ members and facts

    def register_member(self, member: Member, ttl_seconds: float) -> None:
        """Announce `member`, or renew it (the heartbeat); it is forgotten `ttl_seconds` after the last time."""
        packed = msgpack.packb(asdict(member))
        self._run_on(self._member_keys, "register_member", member.id, packed, int(ttl_seconds * 1000))

    def members(self, role: str) -> list[Member]:
        """The live members of `role`, by id."""
        found: list[Member] = []
        for packed in self._run_on(self._member_keys, "members"):
            try:
                found.append(member_from(packed))
            except ValueError as error:  # it can only hurt itself: it is not there, until its entry runs out
                log.warning("member_unreadable", error=str(error))
        return sorted((member for member in found if member.role == role), key=lambda member: member.id)

    def unregister_member(self, member_id: str) -> None:
        """Forget a member that leaves."""
        self._run_on(self._member_keys, "register_member", member_id, b"", -1)
        self._run_on(self._member_keys, "members")

    def set_value(self, name: str, value: str) -> None:
        """Remember a small fact of the run: `vcppo.common.store.facts` knows their names and types."""
        self._run_on(self._member_keys, "set_value", name, value)

    def get_value(self, name: str) -> str | None:
        """What `set_value` stored under this name; None: nothing yet."""
        value = self._redis.call("get_value", lambda client: client.hget(self._prefix + "values", name))
        return None if value is None else cast(bytes, value).decode()

    # ------------------------------------------------------------------ plumbing

    def _run(self, script: str, *args: str | bytes | int) -> Any:
        return self._run_on(self._keys, script, *args)

    def _run_on(self, keys: list[str], script: str, *args: str | bytes | int) -> Any:
        return self._redis.run(script, keys, args)

    def _wait(self, stream: str, after: str | bytes, seconds: float) -> str | None:
        return self._redis.newest_after(self._prefix + stream, after, seconds)

    def _fetch(self, prompt_ids: Sequence[str], sizes: Sequence[int]) -> list[bytes]:
        """Payloads in batches of about `FLUSH_BYTES`, given their sizes (or a guess)."""
        key = self._prefix + "payloads"
        found: list[bytes | None] = []
        for batch in batches(zip(prompt_ids, sizes, strict=True)):
            ids = [prompt_id for prompt_id, _ in batch]
            found += self._redis.hash_fields("payloads", key, ids)
        for prompt_id, payload in zip(prompt_ids, found, strict=True):
            if payload is None:
                raise StoreError(
                    f"prompt {prompt_id} has no trajectory in the store: it is neither buffered nor claimed"
                )
        return cast(list[bytes], found)

    def _check_schema(self) -> None:
        key = self._prefix + "schema"

        def agree(client: Any) -> bytes:
            found = client.get(key)  # first: a full Redis refuses to write what is there already
            if found is None:
                client.set(key, STORE_SCHEMA_VERSION, nx=True)
                found = client.get(key)
            return cast(bytes, found)

        found = self._redis.call("schema", agree).decode()
        if found != STORE_SCHEMA_VERSION:
            raise StoreError(
                f"the run's keys {self._prefix}* at {self._redis.address} have schema version {found}, this program "
                f"has {STORE_SCHEMA_VERSION}; use the version that wrote them, or another run.name"
            )


def _trace(event: str, **fields: object) -> None:
    """A debug line, where logging is set up to want one: these hold long lists."""
    if logging.getLogger(__name__).isEnabledFor(logging.DEBUG):
        log.debug(event, **fields)

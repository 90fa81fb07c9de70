"""Everything of a run that must survive, in Redis: prompts, leases, trajectories and the ledger.

The life of a prompt; each arrow is one atomic, repeatable Lua script (``common/store/lua``)::

    issue ─▶ queued ─lease─▶ leased ─append─▶ buffered ─claim─▶ claimed ─commit─▶ trained
                ▲ └───────────│──│──── append (a late trajectory of an expired lease)
                └─ returned, expired lease
    queued|leased ─expire─▶ expired          queued|leased|buffered|claimed ─reject─▶ rejected
                                             buffered ─leave_out─▶ rejected (a group without signal)

A trajectory is accepted exactly when its prompt is queued or leased: so each prompt is trained once,
whoever resends what. Settled prompts leave nothing behind but their id: the newest 8,192 of them, or four times the
most that were ever unsettled at once, if that is more.

Each process enters as an incarnation of its name (`vcppo.common.store.incarnations`). Every script refuses those that
have a successor.

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
from vcppo.common.records.wire import WireError, decode_prompt
from vcppo.common.store.codec import (
    DEAD_LETTER_BYTES,
    FACT_KEYS,
    KEYS,
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
from vcppo.common.store.incarnations import (
    Fenced,
    Incarnation,
    StoreChanged,
    Superseded,
    about_us,
    earlier_day,
    key_prefix,
    new_token,
    why_fenced,
)
from vcppo.common.store.ledger import AppendResult, BufferEntry, DeadLetter, Ledger, Member, Outstanding
from vcppo.common.store.redis_connection import (
    Credentials,
    Memory,
    NoLongerKnown,
    RedisConnection,
    StoreCannotWrite,
    StoreError,
    StoreFull,
    StoreUnavailable,
)

__all__ = [
    "AppendResult",
    "BufferEntry",
    "Credentials",
    "DeadLetter",
    "Fenced",
    "Incarnation",
    "Ledger",
    "Member",
    "Outstanding",
    "Memory",
    "RunStore",
    "StoreChanged",
    "StoreError",
    "StoreCannotWrite",
    "StoreFull",
    "StoreUnavailable",
    "Superseded",
]

log = structlog.get_logger(__name__)

STORE_SCHEMA_VERSION = "1"
MAX_LEASE_EXPIRIES = 5
"""A prompt whose leases expire this often kills its generators: it is rejected."""


class RunStore:
    """One run's key space. Make it with `connect`."""

    def __init__(self, connection: RedisConnection, run_id: str) -> None:
        self._redis = connection
        self._prefix = f"vcppo:{{{run_id}}}:"
        self._keys = [self._prefix + name for name in KEYS]
        self._where = f"the store of run {run_id!r} at {connection.address}"
        self._acts_for: tuple[Incarnation, ...] = ()
        self._seen = Ledger()
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

    # ------------------------------------------------------------------ whom this store acts for

    @property
    def incarnation(self) -> int:
        """This process' number among those of its name (`enter`); 0: it has not entered."""
        return self._acts_for[-1].number if self._acts_for else 0

    def enter(self, name: str, launch: Incarnation | None = None) -> Incarnation:
        """From here on act as a new incarnation of `name`: those before it are refused whatever they ask for.

        So is this store, once another has entered under the name. A store that never enters is refused nothing: tools
        that look at a run, and tests.

        Args:
            launch: the launcher's incarnation that this process acts for besides: of the newest launcher alone.

        Raises:
            Fenced: `launch` is not the newest.
        """
        self._act_for(() if launch is None else (launch,))
        token = new_token()
        number = int(self._run("enter", name, token, about_us(), self._prefix + key_prefix(name)))
        mine = Incarnation(name, number, token)
        self._act_for((*self._acts_for, mine))
        log.info("entered", incarnation=number, name=name, launch=None if launch is None else launch.number)
        return mine

    def confirm(self) -> None:
        """Before something is done that no script does, such as publishing a file: is this still the one that acts?

        Raises:
            Fenced: it is not.
        """
        if self._acts_for:
            self.ledger()

    def _act_for(self, incarnations: tuple[Incarnation, ...]) -> None:
        self._acts_for = incarnations
        self._keys = self._keys[: len(KEYS)] + [self._prefix + each.key for each in incarnations]

    # ------------------------------------------------------------------ learner: issue

    def issue(self, prompts: Sequence[Prompt], *, first: bool = False) -> int:
        """Put new prompts at the end of the queue; those issued before are left as they are. How many were new.

        Args:
            first: before all others instead, in the order given; for evaluations, which wait for all of theirs.
        """
        place = "first" if first else "last"
        num_new = sum(int(self._run("issue", place, *flatten(batch))) for batch in batches(map(issue_args, prompts)))
        _trace("prompts_issued", num_new=num_new, prompt_ids=[prompt.id for prompt in prompts])
        return num_new

    # ------------------------------------------------------------------ generators: leases

    def lease(self, generator_id: str, count: int, lease_seconds: float, wait_seconds: float) -> list[Prompt]:
        """Up to `count` of the oldest queued prompts, leased to `generator_id` for `lease_seconds`.

        Expired leases of anyone are put back first. With nothing queued it waits up to `wait_seconds`
        for a prompt to be issued, returned or to expire; then returns an empty list. A prompt that was damaged in
        the store is rejected here: it would end one generator after the other.
        """
        if count <= 0:
            return []
        deadline = time.monotonic() + wait_seconds
        while True:
            newest, next_expiry_ms, *leased = self._run(
                "lease", generator_id, count, int(lease_seconds * 1000), MAX_LEASE_EXPIRIES
            )
            remaining = deadline - time.monotonic()
            prompts = self._sound(generator_id, dict(zip(leased[::2], leased[1::2], strict=True)))
            if prompts or remaining <= 0:
                if prompts:
                    _trace("prompts_leased", prompt_ids=[prompt.id for prompt in prompts])
                return prompts
            if leased:  # all of them were damaged, and there may be more
                continue
            if next_expiry_ms >= 0:
                remaining = min(remaining, next_expiry_ms / 1000 + 0.001)
            self._wait("issued", newest, remaining)

    def _sound(self, generator_id: str, leased: dict[bytes, bytes | None]) -> list[Prompt]:
        """The prompts that can be read; the others are rejected."""
        prompts: list[Prompt] = []
        for raw, payload in leased.items():
            try:
                prompt = decode_prompt(payload or b"")
                if prompt.id != raw.decode():
                    raise WireError(f"id: {prompt.id!r} is stored as {raw.decode()!r}")
                prompts.append(prompt)
            except WireError as error:
                log.error("prompt_damaged", prompt_id=raw.decode(), reason=str(error), effect="rejected and replaced")
                self.reject(raw.decode(), "damaged prompt", detail=str(error), leased_by=generator_id)
        return prompts

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
        group, at another version, as another sample, of another task or with other tokens than the trajectory says.
        Batched by bytes.
        """
        results: list[str] = []
        for batch in batches(map(append_args, entries)):
            results += texts(self._run("append", *flatten(batch)))
        _trace("trajectories_appended", results=results, trajectory_ids=[entry.trajectory_id for entry in entries])
        return cast(list[AppendResult], results)

    def reject(
        self, prompt_id: str, reason: str, *, detail: str = "", payload: bytes = b"", leased_by: str | None = None
    ) -> bool:
        """Give a prompt up, with a dead letter; False if it was never issued or is settled.

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

    def leave_out(self, prompt_ids: Sequence[str], fact: tuple[str, str]) -> bool:
        """Reject buffered trajectories for want of signal, all or none, without dead letters: the ledger counts them
        apart.

        Args:
            fact: name and text of a value (`set_value`) that is written in the same instant.

        Returns False, with nothing done, when one of them is not buffered: also where this was done before.
        """
        return bool(prompt_ids) and bool(self._run("leave_out", *fact, *prompt_ids))

    def evaluated(self, prompt_ids: Sequence[str]) -> int:
        """The figures of these buffered trajectories are on disk: count them as evaluated and delete them. How many.

        Doing it again changes nothing.
        """
        return sum(int(self._run("evaluate", *flatten(batch))) for batch in batches((i,) for i in prompt_ids))

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
        if refused := self.take(prompt_ids, step):
            raise StoreError(f"claim for step {step}: prompt {refused} is not buffered, nothing was claimed")
        return self.payloads(prompt_ids)

    def take(self, prompt_ids: Sequence[str], step: int) -> str:
        """As `claim`, for who has the payloads; "", or the prompt that is not buffered: then nothing was claimed."""
        if not prompt_ids:
            return ""
        refused = cast(bytes, self._run("claim", step, *prompt_ids)).decode()
        if not refused:
            _trace("prompts_claimed", step=step, prompt_ids=list(prompt_ids))
        return refused

    def claimed(self) -> dict[int, list[str]]:
        """step -> prompt ids in the order they were claimed: what a learner that crashed must replay."""

        def queue(pipeline: Any) -> None:
            pipeline.zrange(self._prefix + "claimed", 0, -1)
            pipeline.hgetall(self._prefix + "claim_steps")

        ids, steps = self._redis.transaction("claimed", queue)
        return claims_from(ids, steps)

    def payloads(self, prompt_ids: Sequence[str]) -> list[bytes]:
        """The wire form of these buffered or claimed trajectories. `StoreError` if one is in neither state."""
        found = self.stored(prompt_ids)
        for prompt_id in prompt_ids:
            if prompt_id not in found:
                raise StoreError(
                    f"prompt {prompt_id} has no trajectory in the store: it is neither buffered nor claimed"
                )
        return [found[prompt_id] for prompt_id in prompt_ids]

    def stored(self, prompt_ids: Sequence[str]) -> dict[str, bytes]:
        """As `payloads`, by prompt id and without those that are not there. Read in batches of about `FLUSH_BYTES`."""
        key = self._prefix + "payloads"

        def queue(pipeline: Any) -> None:
            for prompt_id in prompt_ids:
                pipeline.hstrlen(key, prompt_id)

        found: dict[str, bytes] = {}
        for batch in batches(zip(prompt_ids, self._redis.transaction("payload_sizes", queue), strict=True)):
            ids = [prompt_id for prompt_id, _ in batch]
            values = self._redis.hash_fields("payloads", key, ids)
            found |= {name: value for name, value in zip(ids, values, strict=True) if value is not None}
        return found

    def commit(self, prompt_ids: Sequence[str], fact: tuple[str, str] = ("", "")) -> int:
        """A durable checkpoint holds these claimed trajectories' effect: count them as trained and delete them.

        Args:
            fact: name and text of a value (`set_value`) that is written in the same instant as the last of them is
                settled, so that no crash comes in between; empty: none.

        Returns how many were claimed until now; committing again changes nothing.
        """
        parts = [flatten(batch) for batch in batches((i,) for i in prompt_ids)] or [[]]
        num_new = sum(int(self._run("commit", "", "", *part)) for part in parts[:-1])
        num_new += int(self._run("commit", *fact, *parts[-1]))
        _trace("prompts_committed", num_new=num_new, prompt_ids=list(prompt_ids))
        return num_new

    def memory(self) -> Memory:
        """How full Redis is."""
        return self._redis.memory()

    def ledger(self) -> Ledger:
        """The accounts at this instant.

        Raises:
            StoreChanged: after `enter`, when less was issued or settled than this process has seen before: the store
                was restored from a copy of an earlier day.
        """
        now = Ledger(*map(int, self._run("ledger")))
        if self._acts_for:
            if fewer := now.fewer_than(self._seen):
                raise earlier_day(self._where, fewer)
            self._seen = now
        return now

    # ------------------------------------------------------------------ members and facts

    def register_member(self, member: Member, ttl_seconds: float) -> int:
        """Announce `member`, or renew it (the heartbeat); it is forgotten `ttl_seconds` after the last time.

        Returns the number of the learner's incarnation; 0: none has entered.
        """
        packed = msgpack.packb(asdict(member))
        return int(self._run("register_member", member.id, packed, int(ttl_seconds * 1000)))

    def members(self, role: str) -> list[Member]:
        """The live members of `role`, by id."""
        found: list[Member] = []
        for packed in self._run("members"):
            try:
                found.append(member_from(packed))
            except ValueError as error:  # it can only hurt itself: it is not there, until its entry runs out
                log.warning("member_unreadable", error=str(error))
        return sorted((member for member in found if member.role == role), key=lambda member: member.id)

    def unregister_member(self, member_id: str) -> None:
        """Forget a member that leaves."""
        self._run("register_member", member_id, b"", -1)
        self._run("members")

    def set_value(self, name: str, value: str) -> None:
        """Remember a small fact of the run: `vcppo.common.store.facts` knows their names and types."""
        self._run("set_value", name, value)

    def get_value(self, name: str) -> str | None:
        """What `set_value` stored under this name; None: nothing yet."""
        value = self._redis.call("get_value", lambda client: client.hget(self._prefix + "values", name))
        return None if value is None else cast(bytes, value).decode(errors="replace")  # its reader says what is wrong

    # ------------------------------------------------------------------ plumbing

    def _run(self, script: str, *args: str | bytes | int) -> Any:
        try:
            return self._redis.run(script, self._keys, args)
        except NoLongerKnown as error:
            raise self._why_fenced() from error

    def _why_fenced(self) -> Fenced:
        entries = self._redis.call("incarnations", lambda client: client.hgetall(self._prefix + "incarnations"))
        known = {name.decode(): entry.decode(errors="replace") for name, entry in cast(Any, entries).items()}
        for mine in reversed(self._acts_for):  # the launcher's last: who was started anew knows who took his own place
            if (why := why_fenced(mine, known, self._where)) is not None:
                return why
        names = ", ".join(mine.name for mine in self._acts_for)
        return StoreChanged(f"{self._where} has lost keys of {names}: another program deletes keys there. Stop it")

    def _wait(self, stream: str, after: str | bytes, seconds: float) -> str | None:
        return self._redis.newest_after(self._prefix + stream, after, seconds)

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

"""Who is there to be sent weights, and who runs them: rank 0's view of the generators."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import structlog

from vcppo.common.errors import DeadlineExceeded
from vcppo.common.process import watchdog
from vcppo.common.store.run_store import Member, RunStore
from vcppo.common.transport import ControlClient, ControlError
from vcppo.common.transport.generator_calls import Abort, Call, Dismiss
from vcppo.learner.weights.fan_out import STATUS_SECONDS

log = structlog.get_logger(__name__)

REPORT_SECONDS = 15.0
Registration = tuple[str, int]
"""A generator's id and epoch. After a restart, or an update that broke off, it registers again with another epoch."""


class Membership:
    """Generators as they registered, less those dropped as they are registered now.

    Args:
        attempts: a generator whose updates fail this often in a row is dismissed.
    """

    def __init__(self, store: RunStore, attempts: int) -> None:
        self._store, self._attempts = store, attempts
        self._dropped: set[Registration] = set()
        self._out: set[str] = set()  # until this broadcast is over, however often they register again meanwhile
        self._synced: dict[Registration, int] = {}  # what we sent, known sooner than members' next heartbeat
        self._failures: dict[str, int] = {}  # updates in a row, by id

    def members(self) -> list[Member]:
        """Those that may be sent weights."""
        live = self._store.members("generator")
        return [m for m in live if (m.id, m.epoch) not in self._dropped and m.id not in self._out]

    @contextmanager
    def round(self) -> Iterator[None]:
        """One broadcast, repeats included: who is dropped in it stays out of it."""
        self._out.clear()
        try:
            yield
        finally:
            self._out.clear()

    def out_of_sync(self, policy_version: int) -> list[str]:
        """Ids of those that do not run ``policy_version``: they joined late or broke off.

        Such a generator takes no prompts until the next broadcast, of a new version or of this one again.
        """
        return [
            m.id
            for m in self.members()
            if m.policy_version != policy_version and self._synced.get((m.id, m.epoch)) != policy_version
        ]

    def wait(self, count: int, deadline_seconds: float) -> list[Member]:
        """Return when ``count`` are registered. Raises DeadlineExceeded."""
        end = time.monotonic() + deadline_seconds
        told, tell_at = -1, 0.0
        while len(found := self.members()) < count:
            watchdog.stage("wait_for_members", waiting_for=["generators"])
            if len(found) != told or time.monotonic() >= tell_at:
                log.info("waiting_for_generators", registered=[m.id for m in found], wanted=count)
                told, tell_at = len(found), time.monotonic() + REPORT_SECONDS
            if time.monotonic() > end:
                names = ", ".join(m.id for m in found) or "none"
                raise DeadlineExceeded(
                    f"{len(found)} of {count} generators registered within {deadline_seconds:.0f} s ({names}): "
                    "look at the generators' logs"
                )
            time.sleep(0.1)  # registrations are keys that expire: there is nothing to block on
        return found

    def synced(self, registrations: Collection[Registration], policy_version: int) -> None:
        """These run the version now."""
        self._synced = dict.fromkeys(registrations, policy_version)
        for name, _ in registrations:
            self._failures.pop(name, None)

    def drop(self, registrations: Collection[Registration], reasons: Mapping[str, str]) -> None:
        """Leave these out until they register again; ``reasons`` by id.

        Their prompts go to others now: one that is stuck, but whose heart beats, would hold them for ever.
        """
        self._dropped.update(registrations)
        self._out.update(reasons)
        for name, reason in reasons.items():
            count = self._store.return_leases(name)
            log.error("generator_dropped", generator_id=name, reason=reason, leases_returned=count)

    def failed(self, member: Member, reason: str) -> None:
        """It is there and did not take an update: let it register again and try once more, but not for ever."""
        self._failures[member.id] = self._failures.get(member.id, 0) + 1
        client = ControlClient(member.control_endpoint, self._store.incarnation)
        tell(member.id, client, Abort())
        if self._failures[member.id] >= self._attempts:
            del self._failures[member.id]
            dismiss(member.id, client, f"its updates failed again and again: {reason}")
        client.close()


def incarnation(member: Member) -> int:
    """When its engine started, by its own clock; a member that does not say so is new with each epoch."""
    found = member.info.get("incarnation")
    return found if isinstance(found, int) else member.epoch


def dismiss(name: str, client: ControlClient, reason: str) -> None:
    """Tell a generator that it is not wanted any more: it hands its prompts back and ends."""
    log.error("generator_dismissed", generator_id=name, reason=reason)
    tell(name, client, Dismiss(reason))


def tell(name: str, client: ControlClient, call: Call[None]) -> None:
    """A call whose failure is worth a line: who can't be reached is dropped soon enough."""
    try:
        client.ask(call, STATUS_SECONDS)
    except ControlError as error:
        log.warning("call_failed", generator_id=name, method=call.method, error=str(error))

"""The buffer: a bridge from ZeroMQ to Redis, ``python -m vcppo.learner.buffer --config RUN/config.yaml --endpoint tcp://…``.

One loop, and no state of its own; any number of buffers may run, and any may be killed::

    poll (≤ 0.5 s) ─▶ decode and check ─▶ append to Redis ─▶ ack
                            └─ not valid ─▶ dead letter ─▶ refuse

It waits for messages, and, when Redis is away, for Redis: then nothing is acknowledged and the senders keep
everything. SIGTERM or SIGINT: what was received is stored and acknowledged first. It never imports torch.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.config.checks import is_local
from vcppo.common.errors import ConfigError
from vcppo.common.process import watchdog
from vcppo.common.process.main import process_parser, run_process
from vcppo.common.process.memory_guard import ResidentMemory
from vcppo.common.records.ids import make_buffer_id, prompt_of
from vcppo.common.records.trajectory import Trajectory, TrajectoryLimits
from vcppo.common.records.wire import WireError, decode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.access import connect_store
from vcppo.common.store.ledger import BufferEntry, Member
from vcppo.common.store.run_store import RunStore, StoreFull, StoreUnavailable
from vcppo.common.telemetry.metrics import MetricsWriter, open_metrics
from vcppo.common.telemetry.rate_limit import RateLimit
from vcppo.common.transport import Received, TrajectoryReceiver, use_keys
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.learner.buffer.door import Door
from vcppo.learner.buffer.store_metrics import StoreState, store_metrics

log = structlog.get_logger(__name__)

_POLL_SECONDS = 0.5
_METRICS_SECONDS = 10.0
_UNUSABLE = {
    "unknown": "was never issued in this run, or was settled long ago",
    "mismatch": "was issued in another group, at another version, as another sample, of another task or with other"
    " tokens than the trajectory says, or it has segments and is not of an agent's task",
}
_COUNTS = ("received", "bytes", "accepted", "duplicate", "unknown", "refused")
_REDIS_PATIENCE_SECONDS = 3.0  # of one call; then we look whether we were told to stop, and try again
_CUT_SECONDS = 1.0  # after connections were cut, before they are cut again: the memory is freed in the background
_STOP_SECONDS = 5.0  # how long what was received may wait for Redis once we are told to stop

T = TypeVar("T")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one buffer until SIGTERM or SIGINT. Returns the exit code."""
    parser = process_parser("python -m vcppo.learner.buffer", __doc__)
    parser.add_argument("--endpoint", help="where to listen; default: transport.endpoints' first")
    given = parser.parse_args(arguments)
    return run_process(given, "buffer", lambda config: serve(config, given.endpoint or endpoints_of(config)[0]))


def serve(config: VcppoConfig, endpoint: str) -> None:
    """Bring the buffer up, run it until a signal, take it down."""
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    if not (config.uses_curve or config.security.curve == "never" or is_local(endpoint)):
        raise ConfigError(
            f"--endpoint {endpoint}: others can reach it, but transport.endpoints = {config.transport.endpoints} say"
            " this machine only, so there are no keys: set security.curve=always, or never to let everybody in"
        )
    use_keys(config, "buffer")
    receiver = TrajectoryReceiver(endpoint, config.transport)
    try:
        # Buffers of several hosts may all listen on "every address": one is no successor of another.
        name = f"{make_buffer_id(receiver.endpoint)} on {socket.gethostname()}"
        store = connect_store(config, patience_seconds=_REDIS_PATIENCE_SECONDS, enter=name)
        metrics = open_metrics(config, "buffer", "seconds")
        try:
            Buffer(config, receiver, store, metrics, stopping).run()
        finally:
            metrics.close()
            store.close()
    finally:
        watchdog.leave()
        receiver.close()


class Buffer:
    """The loop. `stopping` ends it."""

    def __init__(
        self,
        config: VcppoConfig,
        receiver: TrajectoryReceiver,
        store: RunStore,
        metrics: MetricsWriter,
        stopping: threading.Event,
    ) -> None:
        self._receiver = receiver
        self._store = store
        self._metrics = metrics
        self._stopping = stopping
        self._limits = TrajectoryLimits(
            max_tokens=config.generator.max_model_len, max_segments=config.task.max_segments
        )
        self._door = Door.of(config)
        self._published: int | None = None
        self._heartbeat_seconds = config.generator.heartbeat_seconds
        self._member = Member(
            id=make_buffer_id(receiver.endpoint),
            role="buffer",
            epoch=time.time_ns(),
            info={"endpoint": receiver.endpoint, "pid": os.getpid()},
        )
        self._counts: Counter[str] = Counter()
        self._started_at = time.monotonic()
        self._heartbeat_at = self._report_at = 0.0
        self._reported: Mapping[str, float | None] = {}
        self._credits = config.rl.num_credits
        self._max_resident_mib = config.transport.receive_memory_mib
        self._next_cut_at = 0.0
        self._memory = ResidentMemory()
        self._complaints = RateLimit(100, _METRICS_SECONDS)  # all of them are in the dead-letter stream
        self._give_up_at: float | None = None  # once we are told to stop while Redis is away

    def run(self) -> None:
        """Until `stopping`. Raises `StoreError` when Redis answers, but refuses."""
        self._heartbeat()
        log.info("ready", endpoint=self._receiver.endpoint)
        while not self._stopping.is_set():
            watchdog.stage("receive")
            self._take(self._receiver.poll(_POLL_SECONDS))
            self._limit_memory()
            self._heartbeat()
            self._report()
        stop_at = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < stop_at and (received := self._receiver.poll(0)):
            self._take(received)
        self._report_at = 0.0
        self._report()
        self._patiently(lambda: self._store.unregister_member(self._member.id))
        log.info("buffer_stopped", **self._counts)

    def _limit_memory(self) -> None:
        """What arrives without ever ending counts in no limit of ZeroMQ's: it is cut off here, and everyone with it."""
        resident = self._memory.mib()
        if resident > self._max_resident_mib and time.monotonic() >= self._next_cut_at:
            self._next_cut_at = time.monotonic() + _CUT_SECONDS
            log.error(
                "connections_cut",
                resident_mib=round(resident),
                limit=f"transport.receive_memory_mib = {self._max_resident_mib:g}",
                effect="senders connect again and send again what was not acknowledged",
            )
            self._receiver.restart()

    def _take(self, received: list[Received]) -> None:
        """Store what is valid, dead-letter what is not; ack and refuse only after that."""
        if not received:
            return
        # Until the learner has said it no prompt is issued, so nothing is accepted either.
        self._limits = self._limits.with_vocabulary(
            lambda: self._patiently(lambda: facts.VOCABULARY_SIZE.read(self._store))
        )
        valid: list[Received] = []
        entries: list[BufferEntry] = []
        for one in received:
            self._counts["received"] += 1
            self._counts["bytes"] += len(one.payload)
            try:
                entry = self._entry(one)
                if entry is not None:
                    entries.append(entry)
                    valid.append(one)
            except WireError as error:
                self._refuse(one, str(error))
        if entries:
            self._append(valid, entries)

    def _knows_versions(self, trajectory: Trajectory) -> bool:
        """Look at what the learner has published when somebody is ahead of what we know; False: Redis stayed away."""
        newest = max(trajectory.issue_version, trajectory.newest_version)
        if newest <= self._door.newest(self._published):
            return True
        read = self._patiently(lambda: (facts.POLICY_VERSION.read(self._store),))
        if read is not None:
            (self._published,) = read
        return read is not None

    def _entry(self, received: Received) -> BufferEntry | None:
        """The checked trajectory; None when it can't be checked now. Raises `WireError`."""
        if received.error:
            raise WireError(received.error)
        trajectory = decode_trajectory(received.payload, self._limits)
        if trajectory.id != received.message_id:
            raise WireError(f"id: {trajectory.id!r} came in a message called {received.message_id!r}")
        if prompt_of(trajectory.id) != trajectory.prompt_id:  # so ids are as unique as prompts are
            raise WireError(f"id: {trajectory.id!r} is no rollout of prompt_id {trajectory.prompt_id!r}")
        self._door.check(trajectory)
        if not self._knows_versions(trajectory):
            return None
        self._door.check_newest(trajectory, self._published)
        return BufferEntry.of(trajectory, received.payload)

    def _append(self, received: list[Received], entries: list[BufferEntry]) -> None:
        results = self._patiently(lambda: self._store.append(entries))
        if results is None:
            return
        self._counts.update(results)
        self._receiver.ack(one for one, result in zip(received, results, strict=True) if result not in _UNUSABLE)
        for one, entry, result in zip(received, entries, results, strict=True):
            if result in _UNUSABLE:
                self._refuse(one, f"prompt_id: {entry.prompt_id!r} {_UNUSABLE[result]}")

    def _refuse(self, received: Received, reason: str) -> None:
        """Dead letter; the prompt it was for is rejected when the sender holds its lease."""
        self._counts["refused"] += 1
        if (held_back := self._complaints.take()) is not None:
            log.warning(
                "trajectory_invalid",
                sender=received.sender,
                trajectory_id=received.message_id,
                reason=reason,
                held_back=held_back,
            )
        prompt_id = prompt_of(received.message_id)

        def bury() -> bool:
            what = "invalid trajectory"
            # Only a lease of the sender's own: a broken or hostile peer can't undo another's work.
            is_rejected = bool(prompt_id and received.sender) and self._store.reject(
                prompt_id, what, detail=reason, payload=received.payload, leased_by=received.sender
            )
            if not is_rejected:
                self._store.dead_letter(what, reason, received.sender, received.payload)
            return True

        if self._patiently(bury):
            self._receiver.refuse(received, reason)

    def _patiently(self, call: Callable[[], T]) -> T | None:
        """`call`, again and again while Redis is away; None when we were told to stop and it stayed away."""
        while True:
            try:
                return call()
            except StoreUnavailable as error:
                is_full = isinstance(error, StoreFull)
                if self._stopping.is_set():
                    self._give_up_at = self._give_up_at or time.monotonic() + _STOP_SECONDS
                    if time.monotonic() >= self._give_up_at:
                        log.warning("left_unacknowledged", reason=str(error), remedy="the senders keep and resend it")
                        return None
                whom = "the learner's commit" if is_full else "redis"
                log.warning("store_full" if is_full else "store_unavailable", error=str(error), waiting_for=whom)
                watchdog.stage("store", waiting_for=[whom])
                if is_full:  # it answers at once, so the pause is ours to make
                    self._stopping.wait(_REDIS_PATIENCE_SECONDS)

    def _heartbeat(self) -> None:
        if time.monotonic() >= self._heartbeat_at:
            self._patiently(lambda: self._store.register_member(self._member, 3 * self._heartbeat_seconds))
            self._heartbeat_at = time.monotonic() + self._heartbeat_seconds

    def _report(self) -> None:
        """Now and then, if anything changed: our own counts, and the state of Redis, which has no voice."""
        now = time.monotonic()
        if now < self._report_at:
            return
        self._report_at = now + _METRICS_SECONDS
        counts = {f"buffer/{name}": float(self._counts[name]) for name in _COUNTS}
        values = {**counts, **self._store_values()}
        seen = {name: value for name, value in values.items() if name != "store/memory_bytes"}  # that is never still
        if seen != self._reported:
            self._reported = seen
            self._metrics.write(int(now - self._started_at), values)

    def _store_values(self) -> Mapping[str, float | None]:
        try:
            members = [member for role in ("generator", "buffer") for member in self._store.members(role)]
            state = StoreState(self._store.ledger(), self._store.memory(), self._store.num_dead_letters(), members)
        except StoreUnavailable as error:
            log.warning("store_unavailable", error=str(error), waiting_for="redis")
            return {"store/up": 0.0}
        return store_metrics(state, self._credits)

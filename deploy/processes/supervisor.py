"""Children and their supervisor: one event loop, no threads, no polling.

The loop sleeps in one `selectors.select` and wakes for exactly four things: output of a child, the end of a child
(SIGCHLD), a request to stop (SIGINT, SIGTERM) and the next deadline (a restart's back-off, a start-up limit, the
caller's own). Every child leads a session of its own, so Ctrl-C reaches only the supervisor, which stops them in order.
The supervisor is a subreaper: grandchildren whose parent died (torchrun's ranks, vLLM's engine process) come to it
and are ended too, so no orphan outlives a run.

It needs nothing that children can exhaust: its open files are its own from the start (`reserve`), lines that the disk
refuses wait in memory (`LogSink`), and a process that can't be started for want of memory, files or processes, or that
ended for want of room, is tried again until it can.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import FrameType
from typing import IO

import structlog

from vcppo.common.errors import EXIT_REFUSED, EXIT_USAGE, DeadlineExceeded
from vcppo.common.files.room import exhausted, shortage_of
from vcppo.deploy.logs.log_lines import LineSplitter, LogSink
from vcppo.deploy.processes.orphans import GRACE_SECONDS, Orphans
from vcppo.deploy.processes.process_spec import Child, Interrupted, ProcessFailed, ProcessSpec
from vcppo.deploy.processes.reserve import Reserve
from vcppo.deploy.processes.restarts import (
    MAX_BACKOFF_SECONDS,
    PROGRESS,
    PROGRESSING_ROLES,
    cause_of,
    resource_lacked,
)
from vcppo.deploy.processes.spawn import spawn

__all__ = ["Child", "Interrupted", "ProcessFailed", "ProcessSpec", "Supervisor"]

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
FINAL = (EXIT_USAGE, EXIT_REFUSED)
"""Exit codes that are never answered with a restart."""


class Supervisor:
    """Starts children, follows them, restarts or reports those that fail, and stops them without orphans.

    Use as a context manager in the main thread (signal handlers); leaving it stops whatever still runs.
    """

    def __init__(
        self,
        sink: LogSink,
        *,
        stop_deadline_seconds: float,
        start_deadline_seconds: float = 600.0,
        on_tick: Callable[[], None] | None = None,
        backoff_seconds: float = 1.0,
        restart_window_seconds: float = 60.0,
    ) -> None:
        self.sink = sink
        self.stop_deadline_seconds = stop_deadline_seconds
        self.start_deadline_seconds = start_deadline_seconds
        self.backoff_seconds = backoff_seconds
        self.restart_window_seconds = restart_window_seconds
        self.on_tick = on_tick
        self.children: dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._next_tick = 0.0
        self._progress_at = float("-inf")  # when a line last said that the work gets on

    # ---- life of the supervisor

    def __enter__(self) -> Supervisor:
        try:
            self._reserve = Reserve()
            self._wake_read, self._wake_write = os.pipe()
        except OSError as error:
            if (shortage := shortage_of(error)) is None:
                raise
            raise exhausted(shortage, "no process can be supervised") from error
        self._orphans = Orphans(self._reserve)
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        }
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        """Stop what runs. Raises Interrupted where a signal came too late for any `wait` and nothing else is wrong."""
        try:
            self.stop([list(self.children)])
        finally:
            for number, handler in self._old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(self._old_wakeup)
            self._selector.close()
            for end in (self._wake_read, self._wake_write):
                os.close(end)
            self._orphans.close()
            self._reserve.close()
        if kind is None:
            self._raise_signals()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGCHLD:
            self._signals.append(number)

    def _raise_signals(self) -> None:
        """Each is raised once; what came with it is heard with it."""
        if self._signals:
            name = signal.Signals(self._signals[0]).name
            self._signals.clear()
            raise Interrupted(f"stopped by {name}")

    # ---- what callers do

    def start(self, spec: ProcessSpec) -> Child:
        """Start a child; its failure surfaces in the next `wait`."""
        child = self.children.setdefault(spec.name, Child(spec))
        self._spawn(child)
        return child

    def wait_ready(self, names: Iterable[str]) -> None:
        """Until all `names` said they are ready. Raises ProcessFailed, DeadlineExceeded or Interrupted."""
        children = [self.children[name] for name in names]

        def ready() -> bool:
            for child in children:
                if child.exit_code == 0 and not child.ready:
                    raise ProcessFailed(child.spec.name, 0, self.sink.last_lines(child.spec.name))
            return all(child.ready for child in children)

        self.wait(ready)

    def wait_exit(self, name: str) -> None:
        """Until the child `name` ended with exit code 0."""
        child = self.children[name]
        self.wait(lambda: child.exit_code == 0)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Follow the children until `condition()`. Raises ProcessFailed, DeadlineExceeded or Interrupted."""
        while not condition():
            self._raise_signals()
            self._turn(float("inf"))
            for child in list(self.children.values()):
                self._judge(child)

    def retire(self, name: str) -> None:
        """SIGTERM a child that is not wanted any more: its end is no failure, and nobody waits for it."""
        child = self.children[name]
        child.stopping, child.restart_at = True, float("inf")
        if child.alive and child.popen is not None:
            log.info("process_stopping", process=name)
            child.popen.terminate()

    def stop(self, order: Sequence[Sequence[str]]) -> None:
        """SIGTERM the groups of `order` one after the other; what outlives its deadline is killed, by name.

        A signal from now on ends the patience; the next `wait`, or leaving the supervisor, raises it.
        """
        heard = len(self._signals)
        for group in order:
            children = [self.children[name] for name in group if name in self.children]
            for child in children:
                self.retire(child.spec.name)
            deadline = time.monotonic() + self.stop_deadline_seconds
            while (
                any(child.alive for child in children) and time.monotonic() < deadline and len(self._signals) == heard
            ):
                self._turn(deadline)
            for child in children:
                if child.alive:
                    log.warning("process_killed", process=child.spec.name, waited_seconds=self.stop_deadline_seconds)
                    self._kill(child)
        self._end_orphans()

    # ---- the loop

    def _turn(self, deadline: float) -> None:
        """Sleep until something happens or `deadline`, then deal with all of it."""
        now = time.monotonic()
        wake_at = min([deadline, self._orphans.next_deadline, *self._timers()])
        timeout = None if wake_at == float("inf") else max(0.0, wake_at - now)
        for key, _ in self._selector.select(timeout):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    os.read(self._wake_read, 4096)
            else:
                self._read(key.fileobj, *key.data)  # type: ignore[arg-type]
        self._reap()
        now = time.monotonic()
        for child in list(self.children.values()):
            if child.restart_at <= now and not self._orphans:  # a new one beside remains of the old would be two
                child.restart_at = float("inf")
                self._spawn(child)
        self._orphans.reap(self._own())
        if now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self._tick()

    def _tick(self) -> None:
        """What is due each second. A display that can't be brought up to date for want of files must not end a run."""
        self.sink.flush()
        try:
            if self.on_tick:
                self.on_tick()
        except OSError as error:
            if (shortage := shortage_of(error)) is None:
                raise
            log.debug("display_not_updated", **shortage.as_fields())

    def _timers(self) -> Iterator[float]:
        if self.on_tick or self.sink.waits:
            yield self._next_tick
        for child in self.children.values():
            if not self._orphans:
                yield child.restart_at
            if child.alive and not child.ready:
                yield child.start_deadline

    def _spawn(self, child: Child) -> None:
        spec = child.spec
        try:
            child.popen = spawn(spec, self._reserve.null)
        except OSError as error:
            if (shortage := shortage_of(error, starting=True)) is None:
                raise
            self._start_later(child, shortage.resource, shortage.remedy)
            return
        child.exit_code, child.ready, child.last_error, child.refused_with = None, False, "", 0
        child.start_deadline = time.monotonic() + self.start_deadline_seconds
        child.lacked = ""
        for pipe in (child.popen.stdout, child.popen.stderr):
            assert pipe is not None
            self._selector.register(pipe, selectors.EVENT_READ, (child, LineSplitter()))
        log.info("process_started", process=spec.name, pid=child.popen.pid, cores=sorted(spec.cores or ()) or None)

    def _read(self, pipe: IO[bytes], child: Child, lines: LineSplitter) -> bool:
        """Pass on what the pipe holds; False when nothing was there. At end of file the pipe is closed."""
        try:
            chunk = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        for line in lines.feed(chunk) if chunk else lines.rest():
            record = self.sink.line(child.spec.name, line)
            if not child.ready and child.spec.says_ready(record):
                child.ready, child.ready_at = True, time.monotonic()
            if record.get("event") == "fatal":
                child.last_error, child.lacked = str(record.get("error", "")), str(record.get("resource", ""))
                if record.get("exit_code") in FINAL:  # one of torchrun's ranks may say it, which itself ends with 1
                    child.refused_with = int(str(record["exit_code"]))
            if record.get("event") in PROGRESS:
                self._progress_at = time.monotonic()
        if not chunk:
            self._selector.unregister(pipe)
            pipe.close()
        return bool(chunk)

    def _reap(self) -> None:
        """Notice ended children; what they left in their pipes is read before anyone hears of the end."""
        for child in self.children.values():
            if child.alive and child.popen is not None and (code := child.popen.poll()) is not None:
                for key in [k for k in self._selector.get_map().values() if k.data and k.data[0] is child]:
                    while self._read(key.fileobj, *key.data):  # type: ignore[arg-type]
                        pass
                    with contextlib.suppress(KeyError, ValueError):  # kept open by a grandchild
                        self._selector.unregister(key.fileobj)
                        key.fileobj.close()  # type: ignore[union-attr]
                child.exit_code = code = child.refused_with if code > 0 and child.refused_with else code
                log.info("process_ended", process=child.spec.name, exit_code=code)
                self._orphans.adopt(self._own())

    def _judge(self, child: Child) -> None:
        """Decide what an ended or late child means. Raises ProcessFailed or DeadlineExceeded when it ends the run."""
        name, now = child.spec.name, time.monotonic()
        if child.alive and not child.ready and now >= child.start_deadline:
            self._late(child)
        if child.alive and child.ready and now - child.ready_at >= self.restart_window_seconds:
            child.waits.over()
        if child.exit_code is None or (child.exit_code == 0 and child.spec.may_finish):
            return
        if child.stopping or child.restart_at < float("inf"):
            return
        if self._waits_for_room(child):
            return
        if child.ready and now - child.ready_at >= self.restart_window_seconds and self._got_on(child):
            child.restarts.begin_anew()
        cause = cause_of(child.exit_code, child.last_error)
        had_come_up = child.ready or child.restarts.in_a_row or self._peers_came_up(child)
        if had_come_up and child.exit_code not in FINAL and child.restarts.may_restart(cause, child.spec.max_restarts):
            self._restart_later(child, now, cause)
            return
        peers = [
            c
            for c in self.children.values()
            if c.spec.role == child.spec.role and (c.alive or c.restart_at < float("inf"))
        ]
        if child.spec.peers_suffice and (child.restarts.in_a_row or child.exit_code in FINAL) and peers:
            child.stopping = True  # said once
            log.error("process_given_up", process=name, exit_code=child.exit_code, restarts=child.restarts.in_a_row,
                      going_on_with=[c.spec.name for c in peers])  # fmt: skip
            return
        raise ProcessFailed(name, child.exit_code or 0, self.sink.last_lines(name))

    def _waits_for_room(self, child: Child) -> bool:
        """It ended for want of a resource, or another that it may need waits for one: then it is started later."""
        if child.exit_code in (0, *FINAL):
            return False
        lines = self.sink.last_lines(child.spec.name)
        if (lacked := resource_lacked(child.exit_code, child.lacked, lines)) is not None:
            self._start_later(child, lacked, child.last_error or lines[-1] if lines else "")
            return True
        for other in self.children.values():
            if other is not child and other.waits.resource and other.waits.is_own:
                self._start_later(child, other.waits.resource, f"{other.spec.name} waits for it", is_own=False)
                return True
        return False

    def _start_later(self, child: Child, resource: str, reason: str, *, is_own: bool = True) -> None:
        """For want of a resource: it counts as no failure, and is tried until there is room."""
        delay = child.waits.again(resource, self.backoff_seconds, is_own=is_own)
        child.restart_at = time.monotonic() + delay
        where = {} if child.spec.folder is None else {"folder": str(child.spec.folder)}
        log.warning("process_waits_for_room", process=child.spec.name, exit_code=child.exit_code, resource=resource,
                    **where, reason=reason[:300], tries=child.waits.tries, in_seconds=delay)  # fmt: skip

    def _got_on(self, child: Child) -> bool:
        """Whether the run has made a step since this process was ready; time must do where nobody counts steps."""
        if not any(each.spec.role in PROGRESSING_ROLES for each in self.children.values()):
            return True
        return self._progress_at > child.ready_at

    def _peers_came_up(self, child: Child) -> bool:
        """Whether others have shown that this kind of process can start: what stopped this one may pass."""
        return child.spec.peers_suffice and any(
            peer.ready for peer in self.children.values() if peer.spec.role == child.spec.role
        )

    def _late(self, child: Child) -> None:
        """Not ready in time: the end of the run at the first start, one more failed attempt at a restart."""
        name = child.spec.name
        if child.restarts.in_a_row and child.restarts.may_restart(
            cause_of(-signal.SIGKILL, ""), child.spec.max_restarts
        ):
            log.warning("process_killed", process=name, waited_seconds=self.start_deadline_seconds, reason="not ready")
            self._kill(child)
            return
        raise DeadlineExceeded(
            f"{name} was not ready after {self.start_deadline_seconds:.0f} s (launcher.startup_deadline_seconds). "
            f"Its last lines:" + "".join(f"\n    {line}" for line in self.sink.last_lines(name))
        )

    def _restart_later(self, child: Child, now: float, cause: str) -> None:
        attempt = child.restarts.count(cause)
        delay = min(self.backoff_seconds * 2 ** (child.restarts.in_a_row - 1), MAX_BACKOFF_SECONDS)
        child.restart_at = now + delay
        log.warning(
            "process_restarting",
            process=child.spec.name,
            exit_code=child.exit_code,
            cause=child.last_error[:200] or None,
            attempt=attempt,
            of=child.spec.max_restarts,
            in_seconds=delay,
        )

    # ---- the end of processes

    def _kill(self, child: Child) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        deadline = time.monotonic() + self.stop_deadline_seconds
        while child.alive and time.monotonic() < deadline:
            self._turn(deadline)

    def _own(self) -> set[int]:
        return {child.pid for child in self.children.values() if child.alive}

    def _end_orphans(self) -> None:
        self._orphans.adopt(self._own())
        deadline = time.monotonic() + 2 * GRACE_SECONDS
        while self._orphans and time.monotonic() < deadline:
            self._turn(deadline)

"""Children and their supervisor: one event loop, no threads, no polling.

The loop sleeps in one `selectors.select` and wakes for exactly four things: output of a child, the end of a child
(SIGCHLD), a request to stop (SIGINT, SIGTERM) and the next deadline (a restart's back-off, a start-up limit, the
caller's own). Every child leads a session of its own, so Ctrl-C reaches only the supervisor, which stops them in order.
The supervisor is a subreaper: grandchildren whose parent died (torchrun's ranks, vLLM's engine process) come to it
and are ended too, so no orphan outlives a run.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO

import structlog

from common.errors import EXIT_INTERRUPTED, DeadlineExceeded, VcppoError
from deploy.log_lines import LineSplitter, LogSink, Record
from deploy.orphans import GRACE_SECONDS, Orphans

log = structlog.get_logger(__name__)

REPOSITORY = Path(__file__).resolve().parent.parent
TICK_SECONDS = 1.0


class ProcessFailed(VcppoError):
    """A process the run can't do without has ended."""

    def __init__(self, name: str, exit_code: int, last_lines: Sequence[str]) -> None:
        how = (
            f"was killed by {signal.Signals(-exit_code).name}" if exit_code < 0 else f"ended with exit code {exit_code}"
        )
        tail = "".join(f"\n    {line}" for line in last_lines)
        super().__init__(f"{name} {how}. Its last lines:{tail or ' none'}")
        self.name, self.process_exit_code = name, exit_code
        if exit_code == 2:
            self.exit_code = 2


class Interrupted(VcppoError):
    """Ctrl-C or SIGTERM."""

    exit_code = EXIT_INTERRUPTED


@dataclass(frozen=True)
class ProcessSpec:
    """What to start and what to do when it ends.

    Attributes:
        name: e.g. ``generator-0``; names the log file and the prefix on the terminal.
        command: program and arguments.
        environment: added to the launcher's own.
        cores: ids to pin to; None leaves the launcher's.
        niceness: added to the launcher's own; higher gives way.
        max_restarts: how often it is started again after failing once it had been ready; 0: its failure is the run's.
        is_ready: recognises the line that says it is ready; default: the log event ``ready`` or ``<role>_ready``.
        peers_suffice: when the restarts are used up, the run goes on while another process of the same `role` lives.
        role: what kind of process it is, e.g. ``generator``.
        may_finish: exit code 0 is its normal end; for a server it is a failure like any other.
    """

    name: str
    command: Sequence[str]
    role: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    cores: frozenset[int] | None = None
    niceness: int = 0
    max_restarts: int = 0
    peers_suffice: bool = False
    may_finish: bool = True
    is_ready: Callable[[Record], bool] | None = None

    def says_ready(self, record: Record) -> bool:
        if self.is_ready is not None:
            return self.is_ready(record)
        return record.get("event") in ("ready", f"{self.role}_ready")


class Child:
    """One process of a spec: alive, or ended with an exit code, or waiting to be started again."""

    def __init__(self, spec: ProcessSpec) -> None:
        self.spec = spec
        self.popen: subprocess.Popen[bytes] | None = None
        self.exit_code: int | None = None
        self.ready = False
        self.stopping = False
        self.num_restarts = 0
        self.start_deadline = float("inf")
        self.restart_at = float("inf")

    @property
    def alive(self) -> bool:
        return self.popen is not None and self.exit_code is None

    @property
    def pid(self) -> int:
        assert self.popen is not None
        return self.popen.pid


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
    ) -> None:
        self.sink = sink
        self.stop_deadline_seconds = stop_deadline_seconds
        self.start_deadline_seconds = start_deadline_seconds
        self.backoff_seconds = backoff_seconds
        self.on_tick = on_tick
        self.children: dict[str, Child] = {}
        self._selector = selectors.DefaultSelector()
        self._signals: list[int] = []
        self._next_tick = 0.0

    # ---- life of the supervisor

    def __enter__(self) -> Supervisor:
        self._orphans = Orphans()
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self._old_wakeup = signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD)
        }
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        return self

    def __exit__(self, *exception: object) -> None:
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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if number != signal.SIGCHLD:
            self._signals.append(number)

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
            if self._signals:
                raise Interrupted(f"stopped by {signal.Signals(self._signals[0]).name}")
            self._turn(float("inf"))
            for child in list(self.children.values()):
                self._judge(child)

    def stop(self, order: Sequence[Sequence[str]]) -> None:
        """SIGTERM the groups of `order` one after the other; what outlives its deadline is killed, by name."""
        self._signals.clear()
        for group in order:
            children = [self.children[name] for name in group if name in self.children]
            for child in children:
                child.stopping, child.restart_at = True, float("inf")
                if child.alive:
                    log.info("process_stopping", process=child.spec.name)
                    with contextlib.suppress(ProcessLookupError):
                        child.popen.terminate() if child.popen else None
            deadline = time.monotonic() + self.stop_deadline_seconds
            while any(child.alive for child in children) and time.monotonic() < deadline and not self._signals:
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
        wake_at = min(
            [deadline, self._next_tick if self.on_tick else float("inf"), self._orphans.next_deadline, *self._timers()]
        )
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
            if child.restart_at <= now:
                child.restart_at = float("inf")
                self._spawn(child)
        self._orphans.reap(self._own())
        if self.on_tick and now >= self._next_tick:
            self._next_tick = now + TICK_SECONDS
            self.on_tick()

    def _timers(self) -> Iterator[float]:
        for child in self.children.values():
            yield child.restart_at
            if child.alive and not child.ready:
                yield child.start_deadline

    def _spawn(self, child: Child) -> None:
        spec = child.spec
        python_path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]))
        trampoline = [sys.executable, "-m", "deploy.child", "--parent", str(os.getpid())]
        if spec.niceness:
            trampoline += ["--niceness", str(spec.niceness)]
        if spec.cores is not None:
            trampoline += ["--cores", ",".join(map(str, sorted(spec.cores)))]
        child.popen = subprocess.Popen(
            [*trampoline, "--", *spec.command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": python_path, "PYTHONUNBUFFERED": "1", **spec.environment},
            start_new_session=True,
        )
        child.exit_code, child.ready = None, False
        child.start_deadline = time.monotonic() + self.start_deadline_seconds
        for pipe in (child.popen.stdout, child.popen.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
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
            child.ready = child.ready or child.spec.says_ready(record)
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
                child.exit_code = code
                log.info("process_ended", process=child.spec.name, exit_code=code)
                self._orphans.adopt(self._own())

    def _judge(self, child: Child) -> None:
        """Decide what an ended or late child means. Raises ProcessFailed or DeadlineExceeded when it ends the run."""
        name, now = child.spec.name, time.monotonic()
        if child.alive and not child.ready and now >= child.start_deadline:
            raise DeadlineExceeded(
                f"{name} was not ready after {self.start_deadline_seconds:.0f} s (launcher.startup_deadline_seconds). "
                f"Its last lines:" + "".join(f"\n    {line}" for line in self.sink.last_lines(name))
            )
        if child.exit_code is None or (child.exit_code == 0 and child.spec.may_finish):
            return
        if child.stopping or child.restart_at < float("inf"):
            return
        if (child.ready or child.num_restarts) and child.num_restarts < child.spec.max_restarts:
            child.num_restarts += 1
            delay = self.backoff_seconds * 2 ** (child.num_restarts - 1)
            child.restart_at = now + delay
            log.warning("process_restarting", process=name, exit_code=child.exit_code, attempt=child.num_restarts,
                        of=child.spec.max_restarts, in_seconds=delay)  # fmt: skip
            return
        peers = [
            c
            for c in self.children.values()
            if c.spec.role == child.spec.role and (c.alive or c.restart_at < float("inf"))
        ]
        if child.spec.peers_suffice and child.num_restarts and peers:
            child.stopping = True  # said once
            log.error("process_given_up", process=name, exit_code=child.exit_code, restarts=child.num_restarts,
                      going_on_with=[c.spec.name for c in peers])  # fmt: skip
            return
        raise ProcessFailed(name, child.exit_code or 0, self.sink.last_lines(name))

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

"""How each fault is done and undone. Chaos decides when; here is only what."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from vcppo.common.config import VcppoConfig
from vcppo.common.store.redis_connection import SOCKET_TIMEOUT_SECONDS as REDIS_SOCKET_SECONDS
from vcppo.deploy.chaos.proxy import Links
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.chaos.watch import Watch
from vcppo.deploy.processes.orphans import children_of
from vcppo.deploy.processes.supervisor import Child, ProcessSpec, Supervisor

# Deadlines of the code that are no settings.
ZMTP_HEARTBEAT_SECONDS = 10.0  # vcppo.common.transport.sockets.HEARTBEAT_DEADLINE_SECONDS
CUT_SECONDS = 3.0


@dataclass
class Blow:
    """A fault that has struck.

    Attributes:
        target: the process or link that was hit.
        seconds: how long it lasts; 0: it is over at once.
        over: says that it has had its effect, before `seconds` are over.
        undo: puts things right as far as chaos must.
        achieved: whether it had its effect; looked at when it is over.
        mended: what must be true, beside new steps, before the run has got over it.
    """

    fault: Fault
    target: str
    seconds: float = 0.0
    over: Callable[[], bool] = lambda: False
    undo: Callable[[], None] = lambda: None
    achieved: Callable[[], bool] = lambda: True
    mended: Callable[[], bool] = lambda: True


class Members(Protocol):
    """What adding a generator needs of the launcher."""

    def generator_spec(self, index: int) -> ProcessSpec:
        """How to start generator number `index`."""


def freeze_seconds(role: str, config: VcppoConfig) -> float:
    """The longest deadline that watches a process of this role."""
    lease, update = config.generator.lease_seconds, config.broadcast.deadline_seconds
    return {
        "generator": max(lease, update, ZMTP_HEARTBEAT_SECONDS),
        "learner": update,
        "buffer": max(config.transport.ack_deadline_seconds, ZMTP_HEARTBEAT_SECONDS),
        "redis": REDIS_SOCKET_SECONDS,
    }[role]


class Injector:
    """Strikes. Every method that takes a fault returns the blow, or None when nothing can be hit at the moment."""

    def __init__(
        self, config: VcppoConfig, supervisor: Supervisor, members: Members, links: Links, watch: Watch, limit: float
    ) -> None:
        self._config, self._supervisor, self._members = config, supervisor, members
        self._links, self._watch, self._limit = links, watch, limit
        self._stopped: set[int] = set()  # pids under SIGSTOP
        self._closed: set[str] = set()  # links that are cut or blocked
        self._next_index = config.generator.num_generators

    def strike(self, fault: Fault) -> Blow | None:
        """Do it."""
        match fault.kind.action:
            case "kill":
                return self._signal(fault, signal.SIGKILL)
            case "terminate":
                return self._signal(fault, signal.SIGTERM)
            case "freeze":
                return self._freeze(fault)
            case "cut" | "block":
                return self._close_link(fault)
            case "fill":
                return self._fill_spool(fault)
            case "add":
                return self._add(fault)
            case _:
                return self._remove(fault)

    def up(self, role: str) -> list[Child]:
        """Processes of a role that are ready, wanted, and not frozen."""
        return [
            child
            for child in self._supervisor.children.values()
            if child.spec.role == role
            and child.alive
            and child.ready
            and not child.stopping
            and not self._stopped.intersection(self._pids(child))
        ]

    def undo_all(self) -> None:
        """Let everything run and flow again, whatever state chaos is in."""
        self._continue(list(self._stopped))
        for name in list(self._closed):
            self._restore(name)

    # ---- processes

    def _pids(self, child: Child) -> list[int]:
        """The process, and under torchrun its ranks."""
        ranks = self._config.learner.num_ranks if child.spec.role == "learner" else 1
        return [child.pid, *(children_of(child.pid) if ranks > 1 else ())]

    def _signal(self, fault: Fault, number: signal.Signals) -> Blow | None:
        candidates = self.up(fault.kind.target)
        if not candidates:
            return None
        child = fault.pick(candidates)
        pids = self._pids(child)
        # A rank dies alone; asking to stop goes to torchrun, which asks all of them.
        pid = fault.pick(pids) if number == signal.SIGKILL else pids[0]
        os.kill(pid, number)
        return Blow(fault, _named(child, pids, pid))

    def _freeze(self, fault: Fault) -> Blow | None:
        candidates = self.up(fault.kind.target)
        if not candidates:
            return None
        child = fault.pick(candidates)
        pids = self._pids(child)
        pid = fault.pick(pids[1:] or pids)
        self._stop([pid])
        seconds = freeze_seconds(child.spec.role, self._config) * fault.stretch
        return Blow(fault, _named(child, pids, pid), seconds, undo=lambda: self._continue([pid]))

    def _fill_spool(self, fault: Fault) -> Blow | None:
        buffers = self.up("buffer")
        if not buffers:
            return None
        pids = [child.pid for child in buffers]
        self._stop(pids)
        before = self._watch.num_spool_full

        def filled() -> bool:
            return self._watch.num_spool_full > before

        return Blow(
            fault, "spool", self._limit, over=filled, achieved=filled, undo=lambda: self._continue(pids)
        )  # fmt: skip

    def _stop(self, pids: Sequence[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self._stopped.add(pid)

    def _continue(self, pids: Sequence[int]) -> None:
        for pid in pids:
            self._stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):  # it was killed while it stood still
                os.kill(pid, signal.SIGCONT)

    # ---- links

    def _close_link(self, fault: Fault) -> Blow | None:
        names = [name for name in self._links.names(fault.kind.target) if name not in self._closed]
        if not names:
            return None
        name = fault.pick(names)
        deadline = REDIS_SOCKET_SECONDS if fault.kind.target == "redis-link" else freeze_seconds("buffer", self._config)
        cut = fault.kind.action == "cut"
        (self._links.cut if cut else self._links.block)(name)
        self._closed.add(name)
        seconds = (CUT_SECONDS if cut else deadline) * fault.stretch
        return Blow(fault, name, seconds, undo=lambda: self._restore(name))

    def _restore(self, name: str) -> None:
        self._closed.discard(name)
        self._links.restore(name)

    # ---- membership

    def _add(self, fault: Fault) -> Blow:
        spec = self._members.generator_spec(self._next_index)
        self._next_index += 1
        child = self._supervisor.start(spec)
        return Blow(
            fault, spec.name, self._limit, over=lambda: child.ready, achieved=lambda: child.ready,
            mended=lambda: spec.name in self._watch.members,
        )  # fmt: skip

    def _remove(self, fault: Fault) -> Blow | None:
        candidates = self.up("generator")
        if len(candidates) < 2:  # one must be left to go on
            return None
        child = fault.pick(candidates)
        self._supervisor.retire(child.spec.name)
        deadline = self._config.launcher.stop_deadline_seconds
        return Blow(
            fault, child.spec.name, deadline, over=lambda: not child.alive, achieved=lambda: child.exit_code == 0
        )  # fmt: skip


def _named(child: Child, pids: Sequence[int], pid: int) -> str:
    rank = pids.index(pid) - 1
    return child.spec.name if rank < 0 else f"{child.spec.name} rank {rank}"

"""What every kind of fault has in common: the run it strikes, who is up, and what must be put right afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from vcppo.common.config import VcppoConfig
from vcppo.common.store.redis_connection import SOCKET_TIMEOUT_SECONDS as REDIS_SOCKET_SECONDS
from vcppo.common.tasks import task_class
from vcppo.deploy.chaos.proxy import Links
from vcppo.deploy.chaos.schedule import Fault
from vcppo.deploy.chaos.shortages import LoweredLimit
from vcppo.deploy.chaos.watch import Watch
from vcppo.deploy.processes.orphans import children_of
from vcppo.deploy.processes.supervisor import Child, ProcessSpec, Supervisor

# Deadlines of the code that are no settings.
ZMTP_HEARTBEAT_SECONDS = 10.0  # vcppo.common.transport.sockets.HEARTBEAT_DEADLINE_SECONDS


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
        alone: nothing else strikes until the run has got over it.
    """

    fault: Fault
    target: str
    seconds: float = 0.0
    over: Callable[[], bool] = lambda: False
    undo: Callable[[], None] = lambda: None
    achieved: Callable[[], bool] = lambda: True
    mended: Callable[[], bool] = lambda: True
    alone: bool = False


class Members(Protocol):
    """What adding a process needs of the launcher."""

    redis_url: str

    @property
    def endpoints(self) -> list[str]:
        """Where buffers listen."""

    def generator_spec(self, index: int) -> ProcessSpec:
        """How to start generator number `index`."""


@dataclass
class Scene:
    """The run that is struck.

    Attributes:
        limit: seconds within which the run must have got over a fault.
        stopped: pids under SIGSTOP.
        closed: links that are cut or blocked.
        spoilt: prompts whose payload was changed in the store, and must come out as dead letters.
        lowered: limits of live processes that are lower than they were.
        num_programs: of chaos' own that were started.
    """

    config: VcppoConfig
    supervisor: Supervisor
    members: Members
    links: Links
    watch: Watch
    limit: float
    stopped: set[int] = field(default_factory=set)
    closed: set[str] = field(default_factory=set)
    spoilt: dict[str, str] = field(default_factory=dict)
    lowered: list[LoweredLimit] = field(default_factory=list)
    next_index: int = 0
    num_programs: int = 0

    def __post_init__(self) -> None:
        self.next_index = self.config.generator.num_generators

    def up(self, role: str) -> list[Child]:
        """Processes of a role that are ready, wanted, and not frozen."""
        return [
            child
            for child in self.supervisor.children.values()
            if child.spec.role == role
            and child.alive
            and child.ready
            and not child.stopping
            and not self.stopped.intersection(self.pids(child))
        ]

    def pick(self, fault: Fault) -> Child | None:
        """The process of the fault's role that was drawn; None: none is up."""
        candidates = self.up(fault.kind.target)
        return fault.pick(candidates) if candidates else None

    def pids(self, child: Child) -> list[int]:
        """The process, and under torchrun its ranks."""
        ranks = self.config.learner.num_ranks if child.spec.role == "learner" else 1
        return [child.pid, *(children_of(child.pid) if ranks > 1 else ())]

    def stop(self, pids: Sequence[int]) -> None:
        """SIGSTOP, until `resume`."""
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
            self.stopped.add(pid)

    def resume(self, pids: Sequence[int]) -> None:
        """SIGCONT."""
        for pid in pids:
            self.stopped.discard(pid)
            with contextlib.suppress(ProcessLookupError):  # it was killed while it stood still
                os.kill(pid, signal.SIGCONT)

    def restore(self, link: str) -> None:
        """Let a link carry again."""
        self.closed.discard(link)
        self.links.restore(link)

    def undo_all(self) -> None:
        """Let everything run and flow again, whatever state chaos is in."""
        self.resume(list(self.stopped))
        for name in list(self.closed):
            self.restore(name)
        for limit in self.lowered:
            limit.undo()


def freeze_seconds(role: str, config: VcppoConfig) -> float:
    """The longest deadline that watches a process of this role. The launcher is watched by nobody: as the longest of
    those that the launcher itself starts. An agents' child has the deadline of a rollout, which is its one call."""
    lease, update = config.generator.lease_seconds, config.broadcast.deadline_seconds
    found = {
        "generator": max(lease, update, ZMTP_HEARTBEAT_SECONDS),
        "learner": update,
        "buffer": max(config.transport.ack_deadline_seconds, ZMTP_HEARTBEAT_SECONDS),
        "redis": REDIS_SOCKET_SECONDS,
    }
    if role == "verifier":
        is_agent = task_class(config.task.name).is_agent
        return config.task.max_rollout_seconds if is_agent else config.task.verifier_timeout_seconds
    return max(found.values()) if role == "launcher" else found[role]


def is_gone(pid: int) -> bool:
    """Whether this process has ended: nobody is left under its number, or only what waits to be buried."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True

"""The head of a run on Slurm: Redis, buffers and the first node's learner ranks, as `vcppo up` runs them.

Redis listens on the node's network, with the password and the user of `vcppo keys`; ZeroMQ's ports want CURVE keys.
Its data is in the run's folder, so the next start, on whatever node, goes on with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from typing import NamedTuple

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.store.ledger import Ledger
from vcppo.common.transport.ports import free_port
from vcppo.deploy.check.quick import CONTAINER
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import Part
from vcppo.deploy.processes.cores import available_cores, thread_environment
from vcppo.deploy.processes.supervisor import Interrupted, ProcessSpec
from vcppo.deploy.slurm.head_note import HeadNote, State, write_note
from vcppo.deploy.terminal.keys_command import ACL_FILE, PASSWORD_FILE, USER, make_redis_access

log = structlog.get_logger(__name__)

GIVEN: tuple[Device, ...] = ()
"""Slurm gives each task its GPUs, in CUDA_VISIBLE_DEVICES: there is nothing for us to place."""
LEAVING_SECONDS = 20.0
"""How long generators may take to leave a run that is done."""


class Job(NamedTuple):
    """A start of a job: Slurm's number, and how often it was queued again."""

    number: str
    restart: int


def network_settings(config: VcppoConfig) -> list[str]:
    """Of each process of a run whose ports other machines reach: keys, and the password of a Redis of our own."""
    if config.redis.url is not None:
        return ["security.curve=always"]
    password = config.keys_folder.absolute() / PASSWORD_FILE
    return ["security.curve=always", f"redis.username={USER}", f"redis.password_file={password}"]


class Head(Launcher):
    """A launcher whose generators, and whose learner's other nodes, are started by Slurm.

    Args:
        config: the run's tree, with `network_settings`.
        network: those settings.
        address: this node's, as others reach it.
        nodes: how many the learner has.
    """

    checks = CONTAINER["learner"] | {"config", "rewards", "redis", "keys"}

    def __init__(
        self, config: VcppoConfig, network: Sequence[str], sink: LogSink, address: str, nodes: int, job: Job
    ) -> None:
        self.address, self.nodes, self.job, self._network = address, nodes, job, list(network)
        self.redis_port, self.rendezvous = free_port(address), free_port(address)
        here = Part(config.learner.num_ranks // nodes, 0)
        super().__init__(config, sink, lambda: None, part=here, devices=GIVEN)  # the tick: conditions are looked at
        if self.embedded:
            self.redis_url = f"redis://{address}:{self.redis_port}/0"
        self.endpoints = [f"tcp://{address}:{free_port(address)}"]
        self._note: HeadNote | None = None

    def run(self) -> Ledger:
        """As the launcher's; what became of it is noted for all who work for this run."""
        if self.embedded:
            make_redis_access(self.config.keys_folder)
        try:
            return super().run()
        except Interrupted:
            self._say("stopped")
            raise
        except VcppoError:
            self._say("failed")
            raise

    def follow(self) -> None:
        """To the learner's end. Generators are told while Redis and buffers are up: they leave in order."""
        try:
            super().follow()
        except Interrupted:
            self._say("stopped")
            raise
        self._say("done")
        end = time.monotonic() + LEAVING_SECONDS
        with closing(self.store()) as store:
            self.supervisor.wait(lambda: not store.members("generator") or time.monotonic() > end)

    def _say(self, state: State) -> None:
        if self._note is not None and self._note.state == "up":
            self._note = self._note.ended(state)
            with suppress(OSError):  # whoever reads it has a deadline
                write_note(self.folder.path, self._note)

    def announce(self) -> None:
        """Others may come."""
        assert self.launch is not None, "entered before buffers start"
        self._note = HeadNote(
            state="up",
            job=self.job.number,
            restart=self.job.restart,
            address=self.address,
            rendezvous=self.rendezvous,
            redis_url=self.redis_url if self.embedded else None,
            endpoints=tuple(self.endpoints),
            launch=self.launch.as_text(),
        )
        write_note(self.folder.path, self._note)
        log.info("head_up", address=self.address, job=self.job.number, restart=self.job.restart)

    def overrides(self, role: str) -> list[str]:
        """This start's addresses, and where keys lie."""
        settings = [f"transport.endpoints=[{', '.join(self.endpoints)}]", f"broadcast.host={self.address}"]
        own = [f"redis.url={self.redis_url}"] if self.embedded else []
        return [*own, *settings, *self._network, JSON_LOGS]

    def redis_spec(self) -> ProcessSpec:
        """The embedded server, on the network, for those who know the password."""
        spec = super().redis_spec()
        acl = self.config.keys_folder.absolute() / ACL_FILE
        network = ("--bind", self.address, "--port", str(self.redis_port), "--aclfile", str(acl))
        return replace(spec, command=[*spec.command, *network])

    def learner_spec(self, nodes: Nodes | None = None) -> ProcessSpec:
        """The first node's part of the learner."""
        if self.nodes > 1:
            nodes = Nodes(self.nodes, 0, f"{self.address}:{self.rendezvous}", self.address)
        return whole_node(super().learner_spec(nodes), self.config, self.nodes)

    def generator_specs(self) -> list[ProcessSpec]:
        """None: Slurm starts them, on other nodes."""
        return []


def whole_node(spec: ProcessSpec, config: VcppoConfig, nodes: int) -> ProcessSpec:
    """A learner process that has all cores Slurm gives, shared out among this node's ranks."""
    ranks = max(1, config.learner.num_ranks // nodes)
    threads = config.learner.num_threads or max(1, len(available_cores()) // ranks)
    return replace(spec, environment={**spec.environment, **thread_environment(threads, shared=False)}, cores=None)

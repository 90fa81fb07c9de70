"""`vcppo up`: one run on one machine. What is started, in which order, and how it ends.

    redis ─ready─▶ buffer(s) ─ready─▶ generators and learner, side by side ─▶ learner ends ─▶ all stop
                                                                              (learner, generators, buffer, redis)

waits for: the learner's end. Unblocked by: its exit, Ctrl-C, a process that can't be spared and ended more often in a
row than launcher.*_restarts allows.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from functools import cached_property

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.access import connect_store
from vcppo.common.store.incarnations import LAUNCH_VARIABLE, LAUNCHER, Incarnation
from vcppo.common.store.ledger import Ledger
from vcppo.common.store.run_store import RunStore
from vcppo.common.transport.endpoints import choose_endpoints, note_endpoints
from vcppo.common.transport.keys import make_keys
from vcppo.deploy.check.quick import UP, require
from vcppo.deploy.launch.nodes import ENVIRONMENT as NODES_ENVIRONMENT
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.launch.room_watch import watch_room
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.cores import CorePlan, available_cores, malloc_environment, plan_cores, thread_environment
from vcppo.deploy.processes.supervisor import FINAL, ProcessFailed, ProcessSpec, Supervisor

log = structlog.get_logger(__name__)

STOP_ORDER = ("learner", "generator", "buffer", "redis")


class Launcher:
    """Brings a run up, follows it to its end and shuts it down.

    Args:
        config: the run's tree; its config.yaml is written already.
        sink: where lines of the processes go.
        on_tick: called about once a second while the run is up (a live view).

    Attributes:
        checks: the quick checks a start begins with.
    """

    checks = UP

    def __init__(self, config: VcppoConfig, sink: LogSink, on_tick: Callable[[], None] | None = None) -> None:
        self.config, self.folder, self.sink = config, RunFolder(config.run.path), sink
        self.embedded = config.redis.url is None
        self.redis_url = config.redis.url or redis_server.url(self.folder.redis)
        self._places: dict[str, int] = {}
        self._on_tick, self._room = on_tick, watch_room(config)
        self.launch: Incarnation | None = None
        self.supervisor = Supervisor(
            sink,
            stop_deadline_seconds=config.launcher.stop_deadline_seconds,
            start_deadline_seconds=config.launcher.startup_deadline_seconds,
            on_tick=self._tick,
            backoff_seconds=config.launcher.restart_backoff_seconds,
            restart_window_seconds=config.launcher.restart_window_seconds,
        )

    def run(self) -> Ledger:
        """Up, to the end, down. Returns the final ledger.

        Raises:
            VcppoError: what failed, by name, with its last lines; everything is down by then.
        """
        require(self.config, self.checks)
        with self.supervisor:
            try:
                self._bring_up()
                self.follow()
                self._stop("learner", "generator", "buffer")
                return self.store().ledger()
            except ProcessFailed as error:
                if error.name == "learner" and error.process_exit_code not in FINAL:
                    raise VcppoError(f"{error}\nThe same command resumes the run from its last checkpoint.") from None
                raise
            finally:
                self._stop(*STOP_ORDER)

    def _tick(self) -> None:
        self._room.tick()
        if self._on_tick is not None:
            self._on_tick()

    def follow(self) -> None:
        """The run itself: until the learner is done."""
        self.supervisor.wait_exit("learner")

    def announce(self) -> None:
        """Redis and buffers are up. On one machine nobody has to be told (`vcppo.deploy.slurm` does)."""

    def store(self) -> RunStore:
        """A connection to the run's store."""
        return connect_store(self.config, url=self.redis_url)

    def _bring_up(self) -> None:
        note_endpoints(self.config, self.endpoints)
        if self.config.uses_curve and (made := make_keys(self.config.keys_folder)):
            log.info("keys_made", roles=made, folder=str(self.config.keys_folder))

        def start(spec: ProcessSpec) -> None:
            self.supervisor.start(self.on_this_host(spec))

        if self.embedded:
            self.supervisor.start(self.redis_spec())
            self.supervisor.wait_ready(["redis"])
        with closing(self.store()) as store:
            self.launch = store.enter(LAUNCHER)
        buffers = self.buffer_specs()
        for spec in buffers:
            start(spec)
        self.supervisor.wait_ready([spec.name for spec in buffers])
        self.announce()
        for spec in [self.learner_spec(), *self.generator_specs()]:
            start(spec)

    def _stop(self, *roles: str) -> None:
        children = self.supervisor.children.values()
        self.supervisor.stop([[c.spec.name for c in children if c.spec.role == role] for role in roles])

    # ---- what is started

    @cached_property
    def endpoints(self) -> list[str]:
        """Where buffers listen; chosen once a launch where none are set, so that a buffer started again is found."""
        return choose_endpoints(self.config)

    def on_this_host(self, spec: ProcessSpec) -> ProcessSpec:
        """`spec` as part of this launch, with a metrics port of its own: processes of one host can't share one."""
        if self.launch is not None:
            spec = replace(spec, environment={**spec.environment, LAUNCH_VARIABLE: self.launch.as_text()})
        first = self.config.metrics.prometheus_port
        if not first:
            return spec
        port = first + self._places.setdefault(spec.name, len(self._places))
        return replace(spec, command=[*spec.command, f"metrics.prometheus_port={port}"])

    def _command(self, *words: str) -> list[str]:
        return [sys.executable, "-m", *words, "--config", str(self.folder.config)]

    def overrides(self, role: str) -> list[str]:
        """Settings of processes of this role that are not the run's: the embedded server's address and the port that
        was chosen stay out of config.yaml, being this machine's affair."""
        del role
        is_chosen = self.config.transport.endpoints is None
        chosen = [f"transport.endpoints=[{', '.join(self.endpoints)}]"] if is_chosen else []
        return [f"redis.url={self.redis_url}", *chosen, JSON_LOGS]

    def redis_spec(self) -> ProcessSpec:
        """The embedded server."""
        settings = self.config.redis
        spec = redis_server.redis_spec(self.folder.redis, fsync=settings.fsync, maxmemory_mib=settings.maxmemory_mib)
        return replace(spec, max_restarts=self.config.launcher.redis_restarts, noted_in=self.folder.processes)

    def buffer_specs(self) -> list[ProcessSpec]:
        """One buffer per endpoint."""
        endpoints = self.endpoints
        return [
            ProcessSpec(
                name="buffer" if len(endpoints) == 1 else make_process_name("buffer", index),
                role="buffer",
                command=[*self._command("vcppo.learner.buffer"), "--endpoint", endpoint, *self.overrides("buffer")],
                environment=thread_environment(1, shared=True),
                max_restarts=self.config.launcher.buffer_restarts,
                may_finish=False,
            )
            for index, endpoint in enumerate(endpoints)
        ]

    def generator_specs(self) -> list[ProcessSpec]:
        """N generators, each with cores of its own as far as there are enough."""
        return [self.generator_spec(index) for index in range(self.config.generator.num_generators)]

    def generator_spec(self, index: int) -> ProcessSpec:
        """Generator number `index`; one beyond those configured shares all cores."""
        cores, plan, launcher = available_cores(), self._plan(), self.config.launcher
        mine = plan.generators[index] if index < len(plan.generators) else range(len(cores))
        name = make_process_name("generator", index)
        return ProcessSpec(
            name=name,
            role="generator",
            command=[*self._command("vcppo.generator"), "--id", name, *self.overrides("generator")],
            # We pin the process; vLLM's own binding would look at the whole machine.
            environment={
                **thread_environment(plan.generator_threads, shared=plan.shared),
                **malloc_environment(),
                "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            },
            cores=frozenset(cores[i] for i in mine) if launcher.pin_cores else None,
            niceness=plan.generator_niceness if launcher.pin_cores else 0,
            max_restarts=launcher.generator_restarts,
            peers_suffice=True,
            may_finish=False,
        )

    def learner_spec(self, nodes: Nodes | None = None) -> ProcessSpec:
        """The learner: plain with one rank, under torchrun with more; with `nodes` this machine's part of it."""
        cores, plan, ranks = available_cores(), self._plan(), self.config.learner.num_ranks
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "vcppo.learner"]
        if nodes is not None:
            words = nodes.torchrun(self.config.run.name, ranks)
        elif ranks == 1:
            words = ["vcppo.learner"]
        return ProcessSpec(
            name="learner",
            role="learner",
            command=[*self._command(*words), *self.overrides("learner")],
            environment={
                **thread_environment(self.config.learner.num_threads or plan.learner_threads, shared=plan.shared),
                **({} if nodes is None else NODES_ENVIRONMENT),
            },
            cores=frozenset(cores[i] for i in plan.learner) if self.config.launcher.pin_cores else None,
            max_restarts=self.config.launcher.learner_restarts,
        )

    def _plan(self) -> CorePlan:
        return plan_cores(len(available_cores()), self.config.generator.num_generators, self.config.learner.num_ranks)

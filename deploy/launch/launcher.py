"""`vcppo up`: one run on one machine. What is started, in which order, and how it ends.

    redis ─ready─▶ buffer(s) ─ready─▶ generators and learner, side by side ─▶ learner ends ─▶ all stop
                                                                              (learner, generators, buffer, redis)

waits for: the learner's end. Unblocked by: its exit, Ctrl-C, a process that can't be spared and ended more often in a
row than launcher.*_restarts allows.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
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
from vcppo.deploy.check.machine import devices_of
from vcppo.deploy.check.quick import UP, require
from vcppo.deploy.launch.nodes import ENVIRONMENT as NODES_ENVIRONMENT
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.launch.room_watch import watch_room
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink
from vcppo.deploy.placement.gpus import VISIBLE, Device, nodes_of_cores, visible_to
from vcppo.deploy.placement.needs import best_place, known_models
from vcppo.deploy.placement.place import Part, Placement, PlacementError, take
from vcppo.deploy.placement.placement_table import placed_words
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.cores import available_cores, malloc_environment, thread_environment
from vcppo.deploy.processes.supervisor import FINAL, ProcessFailed, ProcessSpec, Supervisor

log = structlog.get_logger(__name__)

STOP_ORDER = ("learner", "generator", "buffer", "redis")


class Launcher:
    """Brings a run up, follows it to its end and shuts it down.

    Args:
        config: the run's tree; its config.yaml is written already.
        sink: where lines of the processes go.
        on_tick: called about once a second while the run is up (a live view).
        part: of the run that is on this machine; None: all of it.
        devices: GPUs for its processes; None: those there are.

    Attributes:
        checks: the quick checks a start begins with.
    """

    checks = UP

    def __init__(
        self,
        config: VcppoConfig,
        sink: LogSink,
        on_tick: Callable[[], None] | None = None,
        *,
        part: Part | None = None,
        devices: Sequence[Device] | None = None,
    ) -> None:
        self.config, self.folder, self.sink = config, RunFolder(config.run.path), sink
        self._part, self._given_devices = part, devices
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
        buffers, learner, generators = self.buffer_specs(), self.learner_spec(), self.generator_specs()
        # Learner and generators import for seconds before they need a buffer: nobody waits for it.
        for spec in [*buffers, *([] if self.placement.is_shared else [learner, *generators])]:
            start(spec)
        self.supervisor.wait_ready([spec.name for spec in buffers])
        self.announce()
        if self.placement.is_shared:
            # vLLM measures what is free while it comes up: a learner that grows beside it would count as its own use.
            for spec in generators:
                start(spec)
            self.supervisor.wait_ready([spec.name for spec in generators])
            start(learner)

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
        """N generators, each with GPUs of its own, and with cores of its own as far as there are enough."""
        return [self.generator_spec(index) for index in range(self.config.generator.num_generators)]

    def generator_spec(self, index: int) -> ProcessSpec:
        """Generator number `index`; one beyond those configured takes GPUs that are free, and shares all cores.

        Raises:
            PlacementError: too few are free.
        """
        cores, plan, launcher = available_cores(), self.placement.cores, self.config.launcher
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
                **visible_to(self._devices_of_generator(index)),
            },
            cores=frozenset(cores[i] for i in mine) if launcher.pin_cores else None,
            niceness=plan.generator_niceness if launcher.pin_cores else 0,
            max_restarts=launcher.generator_restarts,
            peers_suffice=True,
            may_finish=False,
        )

    def learner_spec(self, nodes: Nodes | None = None) -> ProcessSpec:
        """The learner: plain with one rank, under torchrun with more; with `nodes` this machine's part of it."""
        cores, plan, ranks = available_cores(), self.placement.cores, self.config.learner.num_ranks
        words = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        words += [*self._numa_binding(), "-m", "vcppo.learner"]
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
                **visible_to(self.placement.ranks),
            },
            cores=frozenset(cores[i] for i in plan.learner) if self.config.launcher.pin_cores else None,
            max_restarts=self.config.launcher.learner_restarts,
        )

    # ---- where

    @cached_property
    def placement(self) -> Placement:
        """Which process has which GPUs and cores, decided once a launch. Raises PlacementError."""
        cores = available_cores()
        devices = devices_of(self.config) if self._given_devices is None else self._given_devices
        models = known_models(self.config)
        found = best_place(
            self.config, devices, models, self._part, nodes_of_cores(cores) if devices else [None] * len(cores)
        )
        if found.has_devices:
            log.info("placed", devices=placed_words(found))
        return found

    def _devices_of_generator(self, index: int) -> Sequence[Device]:
        placed, count = self.placement, self.config.generator.tensor_parallel_size
        if index < len(placed.generators) or not placed.has_devices:
            return placed.generators[index] if placed.has_devices else ()
        children = self.supervisor.children.values()
        held = {
            word
            for child in children
            if (child.alive or child.restart_at < float("inf"))
            and not (placed.is_shared and child.spec.role == "learner")
            for word in child.spec.environment.get(VISIBLE, "").split(",")
        }
        everything = dict.fromkeys([*placed.free, *(d for group in placed.generators for d in group), *placed.ranks])
        free = [device for device in everything if device.name not in held]
        if len(free) < count:
            raise PlacementError(
                f"{make_process_name('generator', index)} needs {count} GPU{'' if count == 1 else 's'}, and {len(free)}"
                f" of {len(everything)} are free ({placed_words(placed)}): stop another generator first"
            )
        return take(free, count)

    def _numa_binding(self) -> list[str]:
        """Of torchrun: each rank on the cores next to its GPU, where its ranks have GPUs of several NUMA nodes."""
        spread = len(self.placement.rank_nodes) > 1 and self.config.launcher.pin_cores
        return ["--numa-binding", "node"] if spread and shutil.which("numactl") is not None else []

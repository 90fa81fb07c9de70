"""`python -m vcppo.deploy.slurm.role ROLE --config FILE`: what each task of a job runs.

    head        Redis, buffers, the first node's learner ranks. Ends with the run
    learner     another node's learner ranks, under the head's torchrun
    generator   one engine, until the run is over; follows a head that comes up elsewhere

waits for: the run's end (head), the child's end or the head's (the others). Unblocked by: SIGTERM, which Slurm sends
before the time limit, at a preemption and at `scancel`; a head that does not come up within its deadline.

Exit codes: 0 done; 130 stopped by a signal: the batch script queues the job again; others as of `vcppo up`.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import structlog

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, VcppoError
from vcppo.common.records.ids import make_process_name
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.incarnations import LAUNCH_VARIABLE
from vcppo.deploy.check.quick import CONTAINER, require
from vcppo.deploy.launch.launcher import Launcher
from vcppo.deploy.launch.nodes import Nodes
from vcppo.deploy.logs.log_lines import JSON_LOGS, LogSink, Screen
from vcppo.deploy.placement.place import Part
from vcppo.deploy.processes.cores import available_cores, thread_environment
from vcppo.deploy.processes.supervisor import FINAL, Interrupted, ProcessFailed, ProcessSpec, Supervisor
from vcppo.deploy.run.run_config import RunError, exclusive
from vcppo.deploy.slurm.cluster import SlurmError, ask
from vcppo.deploy.slurm.head import GIVEN, Head, Job, network_settings, whole_node
from vcppo.deploy.slurm.head_note import HeadNote, read_note, wait_for_note
from vcppo.deploy.terminal.session import own_logs_to, write_ledger

log = structlog.get_logger(__name__)

HEAD_SECONDS = 900.0
"""How long a learner node or a generator waits for a head, before it ends: it holds GPUs meanwhile."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one role. Returns the exit code."""
    arguments = _parse(argv)
    try:
        config = _config(arguments.config)
    except VcppoError as error:
        sys.stderr.write(f"vcppo: {error}\n")
        return error.exit_code
    service = {"head": "launcher", "learner": f"node{arguments.learner_node}", "generator": "node"}[arguments.role]
    service = f"slurm-{service}-{_place(arguments)}" if arguments.role != "head" else service
    sink = LogSink(RunFolder(config.run.path).logs, config.run.name, Screen(level="info", as_json=True).show)
    with closing(sink), own_logs_to(sink, service):
        try:
            return ROLES[arguments.role](config, arguments, sink)
        except Interrupted as error:
            log.info("ending", reason=str(error))
            return error.exit_code
        except VcppoError as error:
            log.error("fatal", error=str(error))
            return error.exit_code


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m vcppo.deploy.slurm.role",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("role", choices=tuple(ROLES))
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="config.yaml of the run's folder")
    parser.add_argument("--learner-nodes", type=int, default=1, metavar="N")
    parser.add_argument("--learner-node", type=int, default=0, metavar="I", help="which of them, from 0")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of this node's first generator")
    return parser.parse_args(argv)


def _config(path: Path) -> VcppoConfig:
    if not path.exists():
        raise RunError(
            f"{path} is not there on {socket.gethostname()}: run.folder must be on a file system that all nodes see"
        )
    return load_config(path, network_settings(load_config(path)))


def this_job() -> Job:
    """Of Slurm's environment."""
    return Job(os.environ.get("SLURM_JOB_ID", "0"), int(os.environ.get("SLURM_RESTART_COUNT") or 0))


def own_address() -> str:
    """By which other nodes reach this one: VCPPO_ADDRESS, else as Slurm itself reaches it (NodeAddr), by number.

    Raises:
        VcppoError: Slurm does not say, or the name has no address.
    """
    if given := os.environ.get("VCPPO_ADDRESS"):
        return given
    remedy = "set VCPPO_ADDRESS in the job's environment"
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    try:
        found = re.search(r"\bNodeAddr=(\S+)", ask("scontrol", "--oneliner", "show", "node", node))
        return socket.gethostbyname(found[1] if found else node)
    except (OSError, SlurmError) as error:
        raise VcppoError(f"the address of node {node} is not known ({error}): {remedy}") from None


class Member(Launcher):
    """Makes specs of processes that act for a start of the head."""

    def __init__(self, config: VcppoConfig, sink: LogSink, note: HeadNote, part: Part) -> None:
        super().__init__(config, sink, part=part, devices=GIVEN)
        self._note = note

    def overrides(self, role: str) -> list[str]:
        """The head's addresses, and where keys lie."""
        del role
        return [*self._note.settings, *network_settings(self.config), JSON_LOGS]

    def acting(self, spec: ProcessSpec) -> ProcessSpec:
        """`spec` as part of the head's launch."""
        return replace(spec, environment={**spec.environment, LAUNCH_VARIABLE: self._note.launch})


# ---- roles


def head(config: VcppoConfig, arguments: argparse.Namespace, sink: LogSink) -> int:
    """To the run's end. Raises Interrupted on SIGTERM."""
    with exclusive(config.run.path):
        launcher = Head(config, network_settings(config), sink, own_address(), arguments.learner_nodes, this_job())
        launcher.supervisor.stop_deadline_seconds = _stop_seconds(config)
        ledger = launcher.run()
        write_ledger(config.run.path, ledger)
    log.info("run_done", ledger=str(ledger), exact=ledger.is_exact)
    return EXIT_OK if ledger.is_exact else EXIT_FAILURE


def learner(config: VcppoConfig, arguments: argparse.Namespace, sink: LogSink) -> int:
    """Another node's ranks. How the run goes on is the head's to say: 0 whatever became of them, but for a signal."""
    require(config, CONTAINER["learner"])
    job, node = this_job(), arguments.learner_node
    note = wait_for_note(config.run.path, lambda note: (note.job, note.restart) == job, HEAD_SECONDS)
    # Ranks go by the order of addresses, and the head's must be the first: '~' is behind all that a name can have.
    nodes = Nodes(arguments.learner_nodes, node, f"{note.address}:{note.rendezvous}", f"~{node:05d}-{own_address()}")
    member = Member(config, sink, note, Part(config.learner.num_ranks // arguments.learner_nodes, 0))
    spec = member.acting(whole_node(member.learner_spec(nodes), config, arguments.learner_nodes))
    spec = replace(spec, name=make_process_name("learner", f"node{node}"))
    try:
        _follow(config, sink, spec, lambda: note.is_over_by(read_note(config.run.path)))
    except ProcessFailed as error:
        log.error("learner_node_ended", error=str(error))
    return EXIT_OK


def generator(config: VcppoConfig, arguments: argparse.Namespace, sink: LogSink) -> int:
    """One engine, for as long as there is a run. Returns the exit code; raises Interrupted on SIGTERM."""
    require(config, CONTAINER["generator"])
    before: HeadNote | None = None
    while True:
        note = wait_for_note(config.run.path, lambda note: note.takes_over(before), HEAD_SECONDS)  # noqa: B023
        if note.is_final:
            log.info("run_over", state=note.state)
            return EXIT_OK
        before = note
        spec = _generator_spec(Member(config, sink, note, Part(0, 1)), arguments)
        try:
            _follow(config, sink, spec, lambda: note.is_over_by(read_note(config.run.path)))  # noqa: B023
        except ProcessFailed as error:
            if error.process_exit_code in FINAL and not note.is_over_by(read_note(config.run.path)):
                raise
            log.warning("generator_ended", error=str(error))  # its head went without a word: is there another?
        log.info("generator_waits_for_head", job=note.job)


def _generator_spec(member: Member, arguments: argparse.Namespace) -> ProcessSpec:
    name = make_process_name("generator", _place(arguments))
    spec = member.acting(member.generator_spec(0))
    mine = share_of_cores(available_cores(), *_task())
    command = [name if word == spec.name else word for word in spec.command]
    port = member.config.metrics.prometheus_port
    metrics = [f"metrics.prometheus_port={port + _task()[0]}"] if port else []
    return replace(
        spec,
        name=name,
        command=[*command, f"generator.control_host={own_address()}", *metrics],
        environment={**spec.environment, **thread_environment(len(mine), shared=False)},
        cores=frozenset(mine),
        niceness=0,
    )


def share_of_cores(cores: Sequence[int], index: int, count: int) -> Sequence[int]:
    """The part of task `index` of `count`: neighbours, all cores shared out; all of them where there are too few."""
    if len(cores) < count:
        return cores
    return cores[len(cores) * index // count : len(cores) * (index + 1) // count]


def _task() -> tuple[int, int]:
    """(index, count) of this task on its node."""
    return int(os.environ.get("SLURM_LOCALID") or 0), int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)


def _place(arguments: argparse.Namespace) -> str:
    """Stays when the job is queued again: what a generator could not deliver is found under its name."""
    return f"{this_job().number}n{arguments.first + _task()[0]}"


def _follow(config: VcppoConfig, sink: LogSink, spec: ProcessSpec, is_over: Callable[[], bool]) -> None:
    """Run a process until it has done its work or the head is gone. Raises ProcessFailed or Interrupted."""
    supervisor = Supervisor(
        sink,
        stop_deadline_seconds=_stop_seconds(config),
        start_deadline_seconds=config.launcher.startup_deadline_seconds,
        on_tick=lambda: None,  # so that the condition below is looked at each second
        backoff_seconds=config.launcher.restart_backoff_seconds,
        restart_window_seconds=config.launcher.restart_window_seconds,
    )
    with supervisor:
        child = supervisor.start(spec)
        supervisor.wait(lambda: child.exit_code == 0 or is_over())


def _stop_seconds(config: VcppoConfig) -> float:
    return float(os.environ.get("VCPPO_STOP_SECONDS") or config.launcher.stop_deadline_seconds)


ROLES: dict[str, Callable[[VcppoConfig, argparse.Namespace, LogSink], int]] = {
    "head": head,
    "learner": learner,
    "generator": generator,
}


if __name__ == "__main__":
    sys.exit(main())

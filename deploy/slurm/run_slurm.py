"""`vcppo slurm`: a run as a job of a Slurm cluster, and generators that join it (docs/slurm.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_OK
from vcppo.common.files.whole_file import write_whole
from vcppo.common.transport.keys import make_keys, private_files
from vcppo.deploy.check.quick import refuse_start
from vcppo.deploy.run.run_config import config_of_run, exclusive, open_run, write_config
from vcppo.deploy.slurm.batch_script import Request, join_script, run_script
from vcppo.deploy.slurm.cluster import (
    SlurmError,
    SlurmRefused,
    ask,
    cluster_problems,
    config_problems,
    folder_problem,
    partitions,
    queued,
    require_slurm,
)
from vcppo.deploy.slurm.head_note import read_note, remove_note
from vcppo.deploy.terminal.keys_command import make_redis_access

BEFORE_SUBMITTING = frozenset({"config", "rewards", "trackers", "model", "run folder", "space"})
"""Quick checks that hold for other machines than this one too."""


def run_slurm(arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises VcppoError."""
    joins = arguments.join is not None
    config = _config(arguments)
    request = make_request(arguments, config)
    script = join_script(request) if joins else run_script(request)
    problems = list(config_problems(request, config))
    if not arguments.dry_run:
        require_slurm()
        if not arguments.shared_folder and (problem := folder_problem(request, Path("/proc/mounts").read_text())):
            problems.append(problem)
        problems += cluster_problems(request, partitions())
        problems += queue_problems(request, joins)
    if problems:
        raise SlurmRefused("\n".join(problems))
    if arguments.dry_run:
        print(script, end="")
        return EXIT_OK
    path = request.slurm / ("join.sh" if joins else "run.sh")
    if joins:
        _write(path, script)
    else:
        with exclusive(config.run.path):
            refuse_start(config, BEFORE_SUBMITTING - {"run folder"})
            write_config(config)
            make_access(config)
            remove_note(config.run.path)
            _write(path, script)
    if arguments.write_only:
        print(path)
        return EXIT_OK
    return _submit(request, path, joins)


def _config(arguments: argparse.Namespace) -> VcppoConfig:
    if arguments.config is not None:
        config = load_config(arguments.config, arguments.overrides)
        return load_config(arguments.config, [*arguments.overrides, f"run.folder={config.run.folder.absolute()}"])
    if arguments.run is not None:
        return config_of_run(open_run(arguments.run), arguments.overrides)
    if arguments.overrides or arguments.learner_nodes is not None:
        raise SlurmRefused("--join takes the run as it is: leave out --learner-nodes and settings")
    if arguments.generator_nodes < 1:
        raise SlurmRefused("--generator-nodes 0: at least one node must join")
    config = config_of_run(open_run(arguments.join))
    note = read_note(config.run.path)
    if note is not None and note.is_final:
        raise SlurmRefused(f"run {config.run.name!r} is {note.state} (job {note.job}): `vcppo slurm --run` resumes it")
    return config


def make_request(arguments: argparse.Namespace, config: VcppoConfig) -> Request:
    """What the command line and the config ask for."""
    parallel, gpus = config.generator.tensor_parallel_size, arguments.gpus_per_node
    per_node = arguments.generators_per_node or (max(1, gpus // parallel) if gpus else 1)
    learner_nodes = 1 if arguments.learner_nodes is None else arguments.learner_nodes
    if arguments.join is None and learner_nodes < 1:
        raise SlurmRefused("--learner-nodes 0: a run needs a learner; generators alone: --join RUN")
    return Request(
        run=config.run.name,
        folder=config.run.path.absolute(),
        work=Path.cwd(),
        python=os.path.abspath(sys.executable),
        learner_nodes=0 if arguments.join is not None else learner_nodes,
        generator_nodes=arguments.generator_nodes,
        generators_per_node=per_node,
        gpus_per_node=gpus,
        gpus_per_generator=parallel,
        **{
            name: getattr(arguments, name)
            for name in ("cpus_per_node", "partition", "account", "qos", "time", "grace_seconds", "sbatch")
        },
    )


def queue_problems(request: Request, joins: bool) -> Iterator[str]:
    """A run has one job of its own, and generators join that."""
    jobs = queued(request.job_name)
    if joins and not jobs:
        yield f"run {request.run!r} has no job that waits or runs: `vcppo slurm --run {request.folder}` submits it"
    elif jobs and not joins:
        yield (
            f"run {request.run!r} is submitted already, as job {', '.join(jobs)}: more generators come by"
            f" --join {request.folder}; to start it again, `scancel {jobs[0]}` first"
        )


def make_access(config: VcppoConfig) -> None:
    """Keys and Redis' password, readable by the user alone."""
    make_keys(config.keys_folder)
    if config.redis.url is None:
        make_redis_access(config.keys_folder)


def _write(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with private_files():
        write_whole(path, script)


def _submit(request: Request, path: Path, joins: bool) -> int:
    """Raises SlurmError with the scheduler's own words where it refuses."""
    try:
        job = ask("sbatch", "--parsable", str(path)).strip().partition(";")[0]
    except SlurmError as error:
        raise SlurmError(f"{error}\nThe script is {path}; options of your own: --sbatch OPTION") from None
    count = "1 node" if request.nodes == 1 else f"{request.nodes} nodes"
    print(f"job {job}: {count}{' of generators for' if joins else ', run'} {request.run!r}; script {path}")
    print(f"watch it: squeue --job {job}; vcppo watch {request.folder}; output in {request.slurm}")
    return EXIT_OK

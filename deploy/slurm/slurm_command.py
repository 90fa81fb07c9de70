"""`vcppo slurm`: a run as a job of a Slurm cluster, and generators that join it (docs/slurm.md)."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
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

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]

BEFORE_SUBMITTING = frozenset({"config", "rewards", "trackers", "model", "run folder", "space"})
"""Quick checks that hold for other machines than this one too."""

_EXAMPLES = """\
vcppo slurm -c my.yaml --learner-nodes 2 --generator-nodes 4 --gpus-per-node 8 --partition gpu --time 24:00:00
vcppo slurm -c my.yaml --generator-nodes 4 --gpus-per-node 8 --dry-run    show the script, do nothing
vcppo slurm -c my.yaml --generator-nodes 4 --write-only     write it, and submit it yourself
vcppo slurm --run runs/first --generator-nodes 4            submit a run again: it resumes
vcppo slurm --join runs/first --generator-nodes 2           two more generator nodes, while it runs
vcppo slurm -c my.yaml --sbatch=--mail-type=END --sbatch=--constraint=h100
squeue --name vcppo-first,vcppo-first-join                  what has become of them
scancel 1234_1                                              one joined node leaves; others go on
scancel 1234                                                stop the run; `vcppo slurm --run` resumes it"""

_TEACH = """
One job holds Redis, the buffer and the learner (the first --learner-nodes) and generators (the others). They start
together. A generator node that fails is left out, and its prompts are generated again. Generators that join are jobs of
their own, a node each: Slurm may preempt, requeue or cancel them one by one.

The job is queued again by itself after a preemption, after its time limit and after the loss of a learner node. It
resumes from its last checkpoint. It is not queued again when it is done, has failed, or was cancelled.

run.folder and this Python must lie where all nodes see them. Make the cold start before: vcppo sft -c my.yaml.
Keys and Redis' password lie in <run>/keys, readable by you alone; no script or job shows them.

exit codes: 0 submitted; 1 Slurm refuses or does not answer; 2 the config, an option or the cluster does not fit
"""


def add_slurm(add: Add) -> None:
    """The command."""
    slurm = add("slurm", run_slurm, "submit a run to a Slurm cluster, or generators that join it", _EXAMPLES)
    slurm.epilog = f"{slurm.epilog}{_TEACH}"
    source = slurm.add_mutually_exclusive_group(required=True)
    source.add_argument("-c", "--config", type=Path, metavar="CONFIG", help="YAML file of the run")
    source.add_argument("--run", metavar="RUN", help="an existing run: its folder, or its name under runs/")
    source.add_argument("--join", metavar="RUN", help="add generator nodes to a run that was submitted")
    slurm.add_argument("overrides", nargs="*", metavar="section.field=value", help="change a setting")
    number = partial(slurm.add_argument, type=_count, metavar="N")
    number("--learner-nodes", help="nodes that train; learner.num_ranks is of all together (default 1)")
    number("--generator-nodes", default=1, help="nodes that generate (default 1); 0: they all join later")
    number("--generators-per-node", help="engines on each (default: as many as its GPUs carry; without GPUs 1)")
    number("--gpus-per-node", default=0, help="GPUs asked of each node (default 0: the CPU)")
    number("--cpus-per-node", help="default: whole nodes (--exclusive)")
    slurm.add_argument("--partition", metavar="NAME", help="default: the cluster's own")
    slurm.add_argument("--account", metavar="NAME", help="sbatch's --account")
    slurm.add_argument("--qos", metavar="NAME", help="sbatch's --qos")
    slurm.add_argument("--time", metavar="LIMIT", help="of one job, as 24:00:00; the run goes on in the next")
    number("--grace-seconds", default=300, help="before the time limit, for a step and a checkpoint (default 300)")
    slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="of sbatch, as it is; repeatable"
    )
    slurm.add_argument("--shared-folder", action="store_true", help="the run's folder is shared, though it looks local")
    what = slurm.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the script; write and submit nothing")
    what.add_argument("--write-only", action="store_true", help="write the run's folder and the script; submit nothing")


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


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value

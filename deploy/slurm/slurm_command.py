"""`vcppo slurm`: what it takes on the command line. Its work is imported when it runs: a help text waits for none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

Command = Callable[[argparse.Namespace], int]
Add = Callable[[str, Command, str, str], argparse.ArgumentParser]

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
    slurm = add("slurm", _slurm, "submit a run to a Slurm cluster, or generators that join it", _EXAMPLES)
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


def _slurm(arguments: argparse.Namespace) -> int:
    from vcppo.deploy.slurm.run_slurm import run_slurm

    return run_slurm(arguments)


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return value

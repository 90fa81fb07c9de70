"""What Slurm says of its partitions, and what of a request does not fit them: found before anything is submitted."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.slurm.batch_script import TIDY_SECONDS, Request

_SECONDS = 60.0
_NEEDED = ("sbatch", "sinfo", "squeue", "scontrol", "srun")
_SINFO = "%R|%D|%G|%c|%l"
# A node sees its own of these. Others (nfs, lustre, gpfs, beegfs, ceph, fuse...) may well be shared.
LOCAL_FILE_SYSTEMS = frozenset({"tmpfs", "ramfs", "overlay", "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs"})


class SlurmError(VcppoError):
    """Slurm can't be asked, or refuses."""


class SlurmRefused(SlurmError):
    """The request can't be right; a line for each reason."""

    exit_code = EXIT_USAGE


class Partition(NamedTuple):
    """Nodes of one kind in a partition.

    Attributes:
        gpus: of a node.
        seconds: the longest a job may take; None: no limit.
        is_default: jobs that name none go there.
    """

    name: str
    nodes: int
    gpus: int
    cpus: int
    seconds: int | None
    is_default: bool


def ask(*command: str) -> str:
    """Output of a Slurm command. Raises SlurmError with what it says."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise SlurmError(
            f"`{command[0]}` did not answer within {_SECONDS:.0f} s: is slurmctld up? (scontrol ping)"
        ) from None
    except OSError as error:
        raise SlurmError(f"`{command[0]}` can't be started ({error.strerror or error})") from None
    if done.returncode != 0:
        raise SlurmError(f"`{' '.join(command)}`: {one_line(done.stderr or done.stdout)}")
    return done.stdout


def require_slurm() -> None:
    """Raises SlurmRefused where its commands are missing."""
    if missing := [name for name in _NEEDED if shutil.which(name) is None]:
        raise SlurmRefused(
            f"no {', '.join(missing)} on PATH: run this on a login node of the cluster (module load slurm), or show the"
            " script alone with --dry-run; one machine without Slurm: vcppo up"
        )


def partitions() -> list[Partition]:
    """As sinfo says. Raises SlurmError."""
    default = re.search(r"PartitionName=(\S+)[^\n]*\bDefault=YES", ask("scontrol", "--oneliner", "show", "partition"))
    name = default[1] if default else ""
    return parse_partitions(ask("sinfo", "--noheader", "--format", _SINFO), name)


def queued(name: str) -> list[str]:
    """Jobs of this name that wait or run, of this user. Raises SlurmError."""
    jobs = ask("squeue", "--noheader", "--user", str(os.getuid()), "--name", name, "--format", "%i")
    return jobs.split()


def parse_partitions(text: str, default: str) -> list[Partition]:
    """Of sinfo's lines ``name|nodes|gres|cpus|limit``."""
    found = []
    for line in text.splitlines():
        name, nodes, gres, cpus, limit = line.strip().split("|")
        gpus = sum(int(count) for count in re.findall(r"gpu:(?:[^:,()]+:)?(\d+)", gres))
        found.append(
            Partition(name, int(nodes), gpus, int(re.sub(r"\D", "", cpus) or 0), parse_time(limit), name == default)
        )
    return found


def parse_time(text: str) -> int | None:
    """Seconds of a Slurm time: minutes, minutes:seconds, [days-]hours:minutes[:seconds]; None: no limit.

    Raises:
        ValueError: it is no time.
    """
    if text.lower() in ("infinite", "unlimited"):
        return None
    if not re.fullmatch(r"(\d+-)?\d+(:\d+){0,2}", text):
        raise ValueError(f"{text!r} is no time of Slurm's: write hours:minutes:seconds, as 24:00:00, or days-hours")
    days, _, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if days:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def config_problems(request: Request, config: VcppoConfig) -> Iterator[str]:
    """What of the config does not fit the nodes that are asked for. Pure."""
    ranks, nodes, gpus = config.learner.num_ranks, request.learner_nodes, request.gpus_per_node
    parallel = config.generator.tensor_parallel_size
    if nodes and ranks % nodes:
        yield (
            f"learner.num_ranks = {ranks} on --learner-nodes {nodes}: give each node as many ranks,"
            f" learner.num_ranks={nodes * max(1, round(ranks / nodes))}"
        )
    elif nodes and gpus and ranks // nodes > gpus:
        yield (
            f"learner.num_ranks = {ranks} are {ranks // nodes} on each of --learner-nodes {nodes}, and"
            f" --gpus-per-node {gpus}: --learner-nodes {-(-ranks // gpus)}, or learner.num_ranks={nodes * gpus}"
        )
    if gpus and request.generators_per_node * parallel > gpus:
        yield (
            f"--generators-per-node {request.generators_per_node} of generator.tensor_parallel_size = {parallel} need"
            f" {request.generators_per_node * parallel} GPUs a node, and --gpus-per-node {gpus}: lower one of the two"
        )
    if not gpus and (config.learner.device == "cuda" or config.broadcast.backend == "nccl"):
        field = "learner.device = cuda" if config.learner.device == "cuda" else "broadcast.backend = nccl"
        yield f"{field} without GPUs: say how many a node has, --gpus-per-node 8"
    if config.transport.endpoints is not None:
        yield (
            f"transport.endpoints = {config.transport.endpoints}: which node the buffers are on is known when the job"
            " starts: leave it out (null)"
        )
    if config.launcher.share_gpus:
        yield "launcher.share_gpus = true: learner and generators have nodes of their own here: set it to false"
    if config.security.curve == "never":
        yield "security.curve = never on a network that others share: set it to auto"


def cluster_problems(request: Request, known: Sequence[Partition]) -> Iterator[str]:
    """What no partition can give. Pure."""
    names = sorted({each.name for each in known})
    mine = [each for each in known if each.name == request.partition or (request.partition is None and each.is_default)]
    if request.partition is None and not mine:
        yield f"this cluster has no default partition: name one with --partition ({', '.join(names)})"
        return
    if not mine:
        yield f"--partition {request.partition}: there is none of that name; there are {', '.join(names)}"
        return
    where = f"partition {mine[0].name}"
    wanted = request.nodes if request.learner_nodes else 1
    fit = [each for each in mine if each.gpus >= request.gpus_per_node]
    if not fit:
        most = max(each.gpus for each in mine)
        yield f"--gpus-per-node {request.gpus_per_node}: nodes of {where} have {most or 'no'} GPUs: lower it to {most}"
        return
    if sum(each.nodes for each in fit) < wanted:
        kind = f" with {request.gpus_per_node} GPUs" if request.gpus_per_node else ""
        yield (
            f"{wanted} nodes are asked for, and {where} has {sum(each.nodes for each in fit)}{kind}: lower"
            " --generator-nodes (more may join later: --join) or --learner-nodes"
        )
    if request.cpus_per_node and request.cpus_per_node > max(each.cpus for each in fit):
        most = max(each.cpus for each in fit)
        yield f"--cpus-per-node {request.cpus_per_node}: nodes of {where} have {most}: lower it, or leave it out"
    yield from _time_problems(request, fit, where)


def _time_problems(request: Request, fit: Sequence[Partition], where: str) -> Iterator[str]:
    if request.grace_seconds <= TIDY_SECONDS:
        yield f"--grace-seconds {request.grace_seconds}: a step and a checkpoint must fit: set it above {TIDY_SECONDS}"
    if request.time is None:
        return
    try:
        seconds = parse_time(request.time)
    except ValueError as error:
        yield f"--time {error}"
        return
    limits = [each.seconds for each in fit]
    longest = None if None in limits else max(limit for limit in limits if limit is not None)
    if longest is not None and (seconds is None or seconds > longest):
        yield (
            f"--time {request.time} is above the limit of {where}, {longest // 60} minutes: lower it to"
            f" {longest // 60}; a run whose time is up is queued again and resumes"
        )
    elif seconds is not None and seconds <= request.grace_seconds:
        yield f"--time {request.time} is over before --grace-seconds {request.grace_seconds} begin: raise --time"


def folder_problem(request: Request, mounts: str) -> str | None:
    """Why other nodes can't see the run's folder, as far as its file system tells; None: they may.

    Args:
        mounts: the text of /proc/mounts.
    """
    found = ("/", "unknown")
    for line in mounts.splitlines():
        words = line.split()
        place = words[1].replace("\\040", " ")
        if request.folder.is_relative_to(place) and len(place) >= len(found[0]):
            found = (place, words[2])
    if found[1] not in LOCAL_FILE_SYSTEMS:
        return None
    return (
        f"run.folder: {request.folder} lies on {found[0]} ({found[1]}), which is this machine's own: set run.folder to"
        " a file system that all nodes share (NFS, Lustre, ...), or say --shared-folder if they do see it"
    )

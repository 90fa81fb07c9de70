"""What is asked of Slurm, and the batch script of it. Pure.

One job with roles by node, not a heterogeneous one: it starts all at once, bears the loss of a generator node
(``--no-kill``) and is requeued as one. Components of a heterogeneous job start by the backfill scheduler only, and such
a job bears no loss. Generators that come and go are jobs of their own (`join_script`), a node each.

A script holds paths and numbers, never a key: Slurm shows it to administrators, and its environment too.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vcppo.common.errors import EXIT_INTERRUPTED
from vcppo.common.run_folder import RunFolder

MAX_REQUEUES = 100  # of one job; a run that is preempted more often is submitted again by hand
TIDY_SECONDS = 15  # of the grace, for what comes after the learner's checkpoint


@dataclass(frozen=True)
class Request:
    """Of one `vcppo slurm`.

    Attributes:
        run: the run's name.
        folder: the run's folder, absolute: every node sees it.
        work: where relative paths of the config begin.
        python: the interpreter, on a path that every node sees.
        learner_nodes: 0: generators alone, which join a run.
        generator_nodes: nodes that generate.
        generators_per_node: engines on each of them.
        gpus_per_node: 0: no GPUs are asked for.
        gpus_per_generator: tensor parallel GPUs of an engine.
        cpus_per_node: None: whole nodes (``--exclusive``).
        grace_seconds: how long before the time limit a run begins to stop.
        sbatch: further options of sbatch, as the user wrote them.
    """

    run: str
    folder: Path
    work: Path
    python: str
    learner_nodes: int
    generator_nodes: int
    generators_per_node: int = 1
    gpus_per_node: int = 0
    gpus_per_generator: int = 1
    cpus_per_node: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None
    grace_seconds: int = 300
    sbatch: Sequence[str] = ()

    @property
    def slurm(self) -> Path:
        """Scripts, output of jobs and the note of the head."""
        return slurm_folder(self.folder)

    @property
    def job_name(self) -> str:
        """Of the run's own job; generators that join have ``-join`` behind it."""
        return f"vcppo-{self.run}"

    @property
    def nodes(self) -> int:
        """Of the run's own job."""
        return self.learner_nodes + self.generator_nodes


def slurm_folder(run: Path) -> Path:
    """What this room keeps in a run's folder."""
    return run / "slurm"


def run_script(request: Request) -> str:
    """The run's own job: Redis, buffers and learner on the first node, more learner nodes, then generators."""
    head = _srun(request, "head", 0, gpus=request.gpus_per_node)
    others = [_srun(request, "learner", node, gpus=request.gpus_per_node) for node in range(1, request.learner_nodes)]
    generators = [_generators(request, node) for node in range(request.learner_nodes, request.nodes)]
    lines = [
        *_header(request, request.job_name, request.nodes, "%j"),
        "# Redis, buffers and this node's learner ranks.",
        f"{head} &",
        "head=$!",
    ]
    if others:
        lines += ["", "# The learner's other nodes.", *(f"{each} &" for each in others)]
    if generators:
        lines += ["", "# Generators: one step a node, so that a node that fails takes nobody along."]
        lines += [f"{each} &" for each in generators]
    return "\n".join([*lines, *_end("head", request.learner_nodes)])


def join_script(request: Request) -> str:
    """Generators on a node of their own, which join the run: one task of a job array a node."""
    many = f"--array=0-{request.generator_nodes - 1}"
    lines = [
        *_header(request, f"{request.job_name}-join", 1, "%A-%a", many),
        f"{_generators(request, 0)} &",
        "generators=$!",
    ]
    return "\n".join([*lines, *_end("generators")])


def _header(request: Request, name: str, nodes: int, log: str, *more: str) -> list[str]:
    folder = RunFolder(request.folder)
    options = [
        f"--job-name={name}",
        f"--nodes={nodes}",
        *more,
        *_share_of_node(request.cpus_per_node),
        *([f"--gpus-per-node={request.gpus_per_node}"] if request.gpus_per_node else []),
        *(
            f"--{option}={value}"
            for option in ("partition", "account", "qos", "time")
            if (value := getattr(request, option)) is not None
        ),
        "--no-kill",
        "--requeue",
        f"--signal=TERM@{request.grace_seconds}",
        "--open-mode=append",
        f"--output={shlex.quote(f'{request.slurm}/{log}.log')}",
        f"--chdir={shlex.quote(str(request.work))}",
        *request.sbatch,
    ]
    return [
        "#!/bin/bash",
        f"# Written by `vcppo slurm` for the run {request.run!r}. docs/slurm.md",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -u",
        "trap : TERM  # the steps are told too, and end in their own time",
        "job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}",
        "job=${job:-$SLURM_JOB_ID}",
        "unset SLURM_NTASKS SLURM_NPROCS SLURM_NTASKS_PER_NODE SLURM_CPUS_PER_TASK  # each step says its own",
        f"export VCPPO_STOP_SECONDS={max(1, request.grace_seconds - TIDY_SECONDS)}",
        f"config={shlex.quote(str(folder.config))}",
        f"python={shlex.quote(request.python)}",
        "",
    ]


def _share_of_node(cpus: int | None) -> list[str]:
    if cpus is None:
        return ["--exclusive", "--mem=0"]
    return ["--ntasks-per-node=1", f"--cpus-per-task={cpus}"]


def _srun(request: Request, role: str, node: int, *, tasks: int = 1, gpus: int = 0, first: int = 0) -> str:
    words = [
        "srun --mpi=none --cpu-bind=none --kill-on-bad-exit=0 --no-kill=off",
        f"--nodes=1 --relative={node} --ntasks={tasks}",
        *([f"--gpus-per-task={gpus}"] if gpus else []),
        f'"$python" -m vcppo.deploy.slurm.role {role} --config "$config"',
    ]
    if role == "generator":
        words.append(f"--first {first}")
    else:
        words.append(f"--learner-nodes {request.learner_nodes} --learner-node {node}")
    return " ".join(words)


def _generators(request: Request, node: int) -> str:
    each = request.generators_per_node
    gpus = request.gpus_per_generator if request.gpus_per_node else 0
    first = (node - request.learner_nodes) * each
    return _srun(request, "generator", node, tasks=each, gpus=gpus, first=first)


_WATCH = """\
# A learner node that fails takes the learner along: all of it starts again from the last checkpoint, on other nodes.
# Slurm takes it out of the job; its srun would wait for it.
learners=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n {learner_nodes})
while kill -0 "$head" 2>/dev/null; do
  if nodes=$(squeue --noheader --jobs "$job" --format %N) && [ -n "$nodes" ]; then
    left=$(scontrol show hostnames "$nodes")
    for node in $learners; do
      grep --quiet --line-regexp --fixed-strings "$node" <<<"$left" && continue
      echo "learner node $node is lost"; lost=1; break 2
    done
  fi
  for _ in 1 2 3 4 5; do sleep 1; kill -0 "$head" 2>/dev/null || break; done
done"""


def _end(waited: str, learner_nodes: int = 0) -> list[str]:
    """Who ended decides. A run that was stopped is queued again, unless its user has cancelled the job."""
    return [
        "",
        "lost=0",
        *([_WATCH.format(learner_nodes=learner_nodes)] if learner_nodes > 1 else []),
        "code=1",
        "while ((!lost)); do",
        f'  wait "${waited}"; code=$?; kill -0 "${waited}" 2>/dev/null || break',
        "done",
        "",
        'state=$(squeue --noheader --jobs "$job" --states all --format %T)',
        f'if [ "$code" -eq {EXIT_INTERRUPTED} ] || [ "$lost" -eq 1 ]; then',
        f'  if [ "$state" = RUNNING ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {MAX_REQUEUES} ]; then',
        '    echo "stopped with code $code: queued again, to resume"',
        '    scontrol requeue "$job"',
        f"    sleep {TIDY_SECONDS}  # it ends us",
        '    exit "$code"',
        "  fi",
        "fi",
        'echo "ended with code $code, state $state"',
        'exit "$code"',
        "",
    ]

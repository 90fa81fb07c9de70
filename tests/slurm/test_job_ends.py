"""How the batch scripts end on a real Slurm: who is queued again, who is not, and which GPUs a task sees.

The jobs are real, their scripts are those of `vcppo slurm`. The program they start is a shell script that only ends
as it is told, so that each job takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, cluster, why_none
from vcppo.deploy.slurm.batch_script import Request, join_script, run_script

pytestmark = [
    pytest.mark.skipif(why_none() is not None, reason=str(why_none())),
    pytest.mark.slow,
    pytest.mark.timeout(120),
]

# $3 is the role. Its lines are the test's evidence.
PROGRAM = """\
#!/bin/bash
role=$3 node=${{SLURMD_NODENAME}} restart=${{SLURM_RESTART_COUNT:-0}}
echo "$role $node restart=$restart task=$SLURM_LOCALID gpus=${{CUDA_VISIBLE_DEVICES:-none}}" >>"{folder}/started"
trap 'echo "$role stopped" >>"{folder}/started"; exit 130' TERM
if [ "$role" = head ]; then
  case "$restart" in
    0) sleep {seconds} & wait; exit {code} ;;
    *) sleep 1; exit 0 ;;
  esac
fi
sleep 30 & wait
"""


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster(nodes=12, cpus=4, gpus=4) as one:
        yield one


class Trial:
    """One job of a script of ours."""

    def __init__(self, slurm: Cluster, folder: Path, code: int = 0, seconds: int = 1) -> None:
        self.slurm, self.folder = slurm, folder / "a run"
        (self.folder / "slurm").mkdir(parents=True)
        program = self.folder / "program"
        program.write_text(PROGRAM.format(folder=self.folder, code=code, seconds=seconds))
        program.chmod(0o755)
        self.request = Request(
            run="trial", folder=self.folder, work=self.folder, python=str(program), learner_nodes=1, generator_nodes=1
        )
        self.job = ""

    def submit(self, script: str) -> None:
        path = self.folder / "run.sh"
        path.write_text(script)
        self.job = self.slurm.slurm("sbatch", "--parsable", str(path)).strip()

    def wait_started(self, count: int) -> None:
        self.slurm.wait(f"{count} starts", lambda: len(self.started()) >= count, 40)

    def started(self) -> list[str]:
        path = self.folder / "started"
        return path.read_text().splitlines() if path.exists() else []

    def end(self) -> dict[str, str]:
        """Of the job, once it waits and runs no more."""

        def over() -> dict[str, str] | None:
            job = self.slurm.job(self.job)
            return job if job["JobState"] not in ("PENDING", "RUNNING", "COMPLETING") else None

        return self.slurm.wait(f"the end of job {self.job}", over, 60)


@pytest.fixture(scope="module")
def ends(slurm: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Trial]:
    """Jobs that end by themselves, all at once: waiting for one at a time would take minutes."""
    found = {
        name: Trial(slurm, tmp_path_factory.mktemp(name), code, seconds)
        for name, (code, seconds) in {"done": (0, 1), "failed": (1, 1), "refused": (3, 1), "stopped": (130, 1)}.items()
    }
    for trial in found.values():
        trial.submit(run_script(trial.request))
    limited = found["limited"] = Trial(slurm, tmp_path_factory.mktemp("limited"), seconds=100)
    limited.submit(run_script(replace(limited.request, time="1", grace_seconds=50)))
    return found


@pytest.mark.parametrize(
    ("name", "state", "restarts", "code"),
    [
        ("done", "COMPLETED", "0", "0:0"),
        ("failed", "FAILED", "0", "1:0"),
        ("refused", "FAILED", "0", "3:0"),
        ("stopped", "COMPLETED", "1", "0:0"),
    ],
)
def test_only_a_run_that_was_stopped_is_queued_again(
    ends: dict[str, Trial], name: str, state: str, restarts: str, code: str
) -> None:
    job = ends[name].end()
    assert (job["JobState"], job["Restarts"], job["ExitCode"]) == (state, restarts, code)


def test_a_run_that_its_user_cancels_is_not_queued_again(slurm: Cluster, tmp_path: Path) -> None:
    trial = Trial(slurm, tmp_path, seconds=60)
    trial.submit(run_script(trial.request))
    trial.wait_started(2)
    slurm.slurm("scancel", trial.job)
    job = trial.end()
    assert (job["JobState"], job["Restarts"]) == ("CANCELLED", "0")
    slurm.wait("the head is told", lambda: "head stopped" in trial.started(), 20)


def test_a_time_limit_stops_it_in_time_and_queues_it_again(ends: dict[str, Trial]) -> None:
    job = ends["limited"].end()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "head stopped" in ends["limited"].started()


def test_the_loss_of_a_learner_node_queues_it_again(slurm: Cluster, tmp_path: Path) -> None:
    trial = Trial(slurm, tmp_path, seconds=100)
    trial.submit(run_script(replace(trial.request, learner_nodes=2, generator_nodes=0)))
    trial.wait_started(2)
    node = next(line.split()[1] for line in trial.started() if line.startswith("learner"))
    slurm.kill_node(node)
    job = slurm.wait("it starts again", lambda: _restarted(slurm.job(trial.job)), 90)
    assert job["Restarts"] == "1"
    assert trial.end()["JobState"] == "COMPLETED"  # on the node that was not in it
    assert f"learner {node} restart=1" not in "\n".join(trial.started())
    slurm.start_node(node)
    slurm.wait("it is back", lambda: "idle" in slurm.states()[node], 60)


def test_gpus_are_dealt_out_by_slurm(slurm: Cluster, tmp_path: Path) -> None:
    """Two engines of two GPUs on a generator node; the head has all four of its own."""
    trial = Trial(slurm, tmp_path, seconds=6)
    asked = replace(trial.request, gpus_per_node=4, gpus_per_generator=2, generators_per_node=2)
    trial.submit(run_script(asked))
    trial.end()
    seen = {tuple(line.split()[-2:]) for line in trial.started() if "gpus=" in line}
    assert seen == {("task=0", "gpus=0,1,2,3"), ("task=0", "gpus=0,1"), ("task=1", "gpus=2,3")}


def test_generators_that_join_are_jobs_of_their_own(slurm: Cluster, tmp_path: Path) -> None:
    trial = Trial(slurm, tmp_path)
    trial.submit(join_script(replace(trial.request, learner_nodes=0, generator_nodes=2)))
    trial.wait_started(2)
    slurm.slurm("scancel", f"{trial.job}_1")
    slurm.wait("one leaves", lambda: trial.started().count("generator stopped") == 1, 30)
    states = slurm.slurm("squeue", "--noheader", "--states=all", "--jobs", trial.job, "--format=%K %T").split("\n")
    assert "0 RUNNING" in [state.strip() for state in states]
    slurm.slurm("scancel", trial.job)


def _restarted(job: dict[str, str]) -> dict[str, str] | None:
    return job if job["Restarts"] != "0" else None


def test_preempted_without_a_grace_time_it_is_queued_again_once(slurm: Cluster, tmp_path: Path) -> None:
    """Slurm does it then; the script must not do it a second time."""
    slurm.slurm("scontrol", "update", "PartitionName=main", "GraceTime=0")
    trial = Trial(slurm, tmp_path, seconds=60)
    trial.submit(run_script(trial.request))
    trial.wait_started(2)
    options = (f"--nodes={len(slurm.names)}", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    slurm.slurm("sbatch", "--partition=urgent", *options)
    job = trial.end()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")

"""A run on a real Slurm of four nodes: submitted, joined, hurt, preempted, finished, and its ledger exact.

One learner node, two generator nodes, real vLLM and DeepSpeed. The tests of a class go on where the one before ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.paths import ROOT
from tests.slurm.cluster import Cluster, cluster, why_none
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.slurm.head_note import HeadNote, read_note

pytestmark = [
    pytest.mark.skipif(why_none() is not None, reason=str(why_none())),
    pytest.mark.slow,
    pytest.mark.timeout(280),
]
CONFIG = Path(__file__).parent / "small.yaml"
MORE = 8  # steps after the preemption; until then the run has no end, however fast the machine is


class Site:
    """A user's working folder beside a cluster."""

    def __init__(self, slurm: Cluster, work: Path) -> None:
        self.slurm, self.work = slurm, work
        self.run = RunFolder(work / "runs" / "slurm")
        self.jobs: dict[str, str] = {}
        self.num_steps = 0

    def vcppo(self, *words: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.slurm.environment, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
        return subprocess.run(
            command, cwd=self.work, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def submit(self, key: str, *words: str) -> None:
        done = self.vcppo("slurm", *words, "--shared-folder", "--grace-seconds", "45")
        assert done.returncode == 0, done.stderr
        self.jobs[key] = done.stdout.split()[1].rstrip(":")

    def steps(self) -> list[int]:
        """Trained steps, in the order in which they were noted."""
        return [record["step"] for record in self.records(self.run.trained_log)]

    def records(self, path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def events(self, event: str) -> list[dict[str, Any]]:
        found = [record for path in sorted(self.run.logs.glob("*.jsonl")) for record in self.records(path)]
        return [record for record in found if record.get("event") == event]

    def note(self) -> HeadNote | None:
        return read_note(self.run.path)

    def wait_steps(self, count: int, seconds: float) -> None:
        def enough() -> bool:
            note = self.note()
            assert note is None or note.state != "failed", self.last_lines()
            return max(self.steps(), default=0) >= count

        self.wait(f"{count} steps", enough, seconds)

    def wait(self, what: str, condition: Any, seconds: float) -> Any:
        try:
            return self.slurm.wait(what, condition, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.last_lines()}") from None

    def last_lines(self) -> str:
        """Of the jobs, for a failure."""
        logs = sorted((self.run.path / "slurm").glob("*.log"))
        return "\n".join(f"{log.name}: {line[:300]}" for log in logs for line in log.read_text().splitlines()[-12:])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("slurm")
    with cluster(nodes=4, cpus=len(os.sched_getaffinity(0))) as slurm:
        one = Site(slurm, root)
        done = one.vcppo("sft", "-c", str(CONFIG))
        assert done.returncode == 0, done.stderr + done.stdout
        yield one


class TestARunThatIsDisturbed:
    def test_a_partition_that_is_not_there_is_refused_before_anything_is_written(self, site: Site) -> None:
        done = site.vcppo("slurm", "-c", str(CONFIG), "--shared-folder", "--partition", "gpu", "--generator-nodes", "9")
        assert done.returncode == 2
        assert "--partition gpu: there is none of that name; there are main, urgent" in done.stderr
        assert not (site.run.path / "slurm").exists()

    def test_it_starts_on_three_nodes_and_trains(self, site: Site) -> None:
        site.submit("run", "-c", str(CONFIG), "--generator-nodes", "2", "rl.num_steps=100000")
        site.wait_steps(3, 150)
        job = site.slurm.job(site.jobs["run"])
        assert (job["JobState"], job["NumNodes"]) == ("RUNNING", "3")
        hosts = {record["service"] for record in site.events("generator_ready") + site.events("ready")}
        assert {f"generator-{site.jobs['run']}n0", f"generator-{site.jobs['run']}n1"} <= hosts

    def test_nothing_that_others_may_read_holds_a_secret(self, site: Site) -> None:
        secrets = [(site.run.path / "keys" / "redis.password").read_text().strip()]
        for path in (site.run.path / "keys").glob("*.key_secret"):
            secrets += [line.split('"')[1] for line in path.read_text().splitlines() if "secret-key" in line]
        assert len(secrets) == 4
        shown = site.slurm.slurm("scontrol", "show", "job", "--details") + site.slurm.slurm("squeue", "--format=%all")
        shown += site.slurm.slurm("scontrol", "write", "batch_script", site.jobs["run"], "-")
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                shown += (entry / "cmdline").read_text()
            except OSError:  # ended
                continue
        for path in site.run.path.rglob("*"):
            if path.is_file() and path.stat().st_mode & 0o077:
                shown += path.read_bytes().decode(errors="replace")
        assert "vcppo.deploy.slurm.role" in shown
        assert [secret for secret in secrets if secret in shown] == []

    def test_a_second_submission_is_refused(self, site: Site) -> None:
        done = site.vcppo("slurm", "--run", "slurm", "--shared-folder")
        assert done.returncode == 2
        assert f"is submitted already, as job {site.jobs['run']}" in done.stderr

    def test_the_run_goes_on_without_a_generator_node_that_fails(self, site: Site) -> None:
        site.slurm.kill_node("node3")
        site.slurm.wait("node3 is down", lambda: "down" in site.slurm.states()["node3"], 60)
        site.wait_steps(max(site.steps()) + 4, 60)
        job = site.slurm.job(site.jobs["run"])
        assert (job["JobState"], job["Restarts"]) == ("RUNNING", "0")

    def test_a_generator_joins(self, site: Site) -> None:
        site.submit("join", "--join", "slurm", "--generator-nodes", "1")
        name = f"generator-{site.jobs['join']}n0"
        site.wait("the joined one is ready", lambda: name in {r["service"] for r in site.events("ready")}, 90)
        site.wait_steps(max(site.steps()) + 2, 60)

    def test_preempted_it_writes_a_checkpoint_and_is_queued_again(self, site: Site) -> None:
        site.slurm.start_node("node3")
        command = ("sbatch", "--partition=urgent", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 3")
        site.slurm.wait("node3 is back", lambda: "idle" in site.slurm.states()["node3"], 60)
        site.slurm.slurm(*command)
        site.wait("the run is stopped", lambda: (note := site.note()) is not None and note.state == "stopped", 60)
        stopped_at = max(site.steps())
        for key in ("run", "join"):
            site.wait(f"{key} is queued again", lambda key=key: site.slurm.job(site.jobs[key])["Restarts"] == "1", 90)
        newest = max(int(path.name.removeprefix("step-")) for path in site.run.checkpoints.glob("step-*"))
        assert newest == stopped_at
        text = site.run.config.read_text()
        assert "num_steps: 100000" in text
        site.run.config.write_text(text.replace("num_steps: 100000", f"num_steps: {stopped_at + MORE}"))
        site.num_steps = stopped_at + MORE

    def test_it_resumes_by_itself_and_its_ledger_is_exact(self, site: Site) -> None:
        site.wait("the run is done", lambda: (note := site.note()) is not None and note.state == "done", 200)
        for key in ("run", "join"):
            job = site.wait(f"{key} ends", lambda key=key: _ended(site.slurm.job(site.jobs[key])), 60)
            assert (job["JobState"], job["ExitCode"], job["Restarts"]) == ("COMPLETED", "0:0", "1")
        assert site.steps() == list(range(1, site.num_steps + 1))
        assert [record["exact"] for record in site.events("run_done")] == [True]
        trained = [name for record in site.records(site.run.trained_log) for name in record["prompt_ids"]]
        assert len(trained) == len(set(trained)) == site.num_steps * 16
        done = site.vcppo("ledger", "--run", "slurm")
        assert done.returncode == 0, done.stdout + done.stderr


def _ended(job: dict[str, str]) -> dict[str, str] | None:
    return job if job["JobState"] not in ("RUNNING", "COMPLETING", "PENDING") else None

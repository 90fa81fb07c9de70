"""Whole jobs, as `vcppo up` runs them, and what is wrong with them: the user's task, the store, the only generator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.paths import ROOT
from vcppo.common.errors import EXIT_OK, EXIT_REFUSED, EXIT_USAGE
from vcppo.common.records.trained_log import check_trained_once
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.chaos.chaos_run import RECIPE
from vcppo.deploy.processes import redis_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS, BATCH = 12, 16
LIMIT_SECONDS = 400.0
VERIFIER_SECONDS = 1.0
# The same task, whose code is wrong: it has no more problems after a while; some verdicts never come, and leave a
# grandchild in a session of its own that holds no pipe of ours.
USERS_TASK = """
import os, time
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic

class RunsOut(ChainArithmetic):
    def problems(self, split, seed, start, count):
        if start > 24:
            raise KeyError("question")
        return super().problems(split, seed, start, count)

class Hangs(ChainArithmetic):
    def verify(self, answer, response, finish_reason):
        if len(response) % 4 == 0:
            if os.fork() == 0:
                os.setsid()
                os.closerange(0, 256)
                os.execvp("sleep", ["sleep", MARK])
            time.sleep(600)
        return super().verify(answer, response, finish_reason)
"""
MARK = f"{600 + os.getpid() / 1e7:.7f}"  # finds the grandchildren of this test among all others


class Job:
    """A run of `vcppo up`, and what it says."""

    def __init__(self, folder: Path, model: Path, *settings: str) -> None:
        self.folder = RunFolder(folder / "small")
        self.terminal = folder / "terminal.txt"
        words = ["-c", str(RECIPE), f"run.folder={folder}", f"model.path={model}", f"rl.num_steps={NUM_STEPS}",
                 "generator.num_generators=1", "security.curve=never", *settings]  # fmt: skip
        command = [sys.executable, "-m", "vcppo.deploy.cli", "up", *words]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        with self.terminal.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)

    @property
    def text(self) -> str:
        return self.terminal.read_text()

    def records(self, event: str) -> list[dict[str, Any]]:
        found = [json.loads(line) for line in self.text.splitlines() if line.startswith("{")]
        return [record for record in found if record["event"] == event]

    def num_steps(self) -> int:
        rows = read_metrics(self.folder.metrics_file("learner"))
        return max((row["step"] for row in rows if row["stage"] == "rl"), default=0)

    def until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.text[-6000:]
            time.sleep(0.1)

    def ends_with(self, code: int, seconds: float = LIMIT_SECONDS) -> None:
        """In time, without a traceback, and nobody is left."""
        assert self.process.wait(seconds) == code, self.text[-6000:]
        assert "Traceback" not in self.text
        started = [record["pid"] for record in self.records("process_started")]
        assert [pid for pid in started if Path(f"/proc/{pid}").exists()] == []

    def pid(self, process: str) -> int:
        return int([each["pid"] for each in self.records("process_started") if each["process"] == process][-1])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cold_start")
    phase = "{steps: 20, batch_size: 16, learning_rate: 4.0e-3, style: {long_fraction: 0.7}}"
    words = ["-c", str(RECIPE), f"run.folder={folder}", f"sft.output={folder / 'model'}", f"sft.phases=[{phase}]"]
    subprocess.run([sys.executable, "-m", "vcppo.deploy.cli", "sft", *words], cwd=ROOT, check=True, timeout=300)
    return folder / "model"


@pytest.fixture
def start(tmp_path: Path, model: Path) -> Iterator[Callable[..., Job]]:
    (tmp_path / "users_task.py").write_text(USERS_TASK.replace("MARK", repr(MARK)))
    jobs: list[Job] = []

    def started(*settings: str) -> Job:
        jobs.append(Job(tmp_path, model, *settings))
        return jobs[-1]

    yield started
    for job in jobs:
        if job.process.poll() is None:
            job.process.terminate()
            job.process.wait(90)


def test_a_task_that_runs_out_of_problems_ends_the_run_once_by_name(start: Callable[..., Job]) -> None:
    job = start("task.name=users_task:RunsOut")
    job.ends_with(EXIT_USAGE)
    (fatal,) = job.records("fatal")
    assert (fatal["service"], fatal["exit_code"]) == ("learner", EXIT_USAGE)
    assert "users_task:RunsOut" in fatal["error"] and "KeyError: 'question'" in fatal["error"], fatal["error"]
    assert job.records("process_restarting") == []


def test_verifiers_that_hang_with_a_hidden_child_cost_their_own_verdict_only(start: Callable[..., Job]) -> None:
    job = start("task.name=users_task:Hangs", f"task.verifier_timeout_seconds={VERIFIER_SECONDS}", "rl.num_steps=4")
    job.ends_with(EXIT_OK)
    recorded = job.records("value_pretraining_recorded")[-1]
    assert not str(recorded["timeout"]).startswith("0 "), recorded
    assert check_trained_once(job.folder.trained_log, max_staleness=1) == 4 * BATCH
    assert job.records("process_restarting") == []
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert [command for command in commands if MARK.encode() in command] == []


def test_a_store_that_is_emptied_ends_the_run_within_a_step(start: Callable[..., Job]) -> None:
    job = start("rl.num_steps=1000")
    job.until(lambda: job.num_steps() >= 3)
    with redis.Redis.from_url(redis_server.url(job.folder.redis)) as client:
        client.flushall()
    before = job.num_steps()
    job.ends_with(EXIT_REFUSED, seconds=90)
    assert job.num_steps() <= before + 1
    assert any("was emptied" in record["error"] for record in job.records("fatal"))
    assert job.records("process_restarting") == []


def test_while_its_only_generator_is_dead_the_learner_waits(start: Callable[..., Job]) -> None:
    job = start()
    job.until(lambda: job.num_steps() >= 3)
    os.kill(job.pid("generator-0"), signal.SIGKILL)
    job.ends_with(EXIT_OK)
    assert [record["process"] for record in job.records("process_restarting")] == ["generator-0"]
    assert check_trained_once(job.folder.trained_log, max_staleness=1) == NUM_STEPS * BATCH
    assert "(exact)" in job.text

"""The whole pipeline through `vcppo`, real processes: cold start, value pretraining, RL with two generators, report.

One run for the module: the learner is killed with SIGKILL in the middle, `vcppo up` brings the run up again and
it finishes. The tests then look at what the run left.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.rig.scraper import Scraper
from tests.paths import RIG, ROOT
from vcppo.common.config import load_config
from vcppo.common.evaluation.on_the_way import read_evaluations
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.common.transport.ports import free_port
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SMOKE = RIG / "smoke.yaml"
KILL_AT_STEP = 5
TAKEN = (
    "common",
    "deploy",
    "generator",
    "learner",
    "redis",
    "tests",
)  # what the folder it is started in has of its own
STAGE_DEADLINE_SECONDS = 400


class Run:
    """The run folder and how `vcppo` ended each time."""

    def __init__(self, root: Path) -> None:
        self.started_in = root / "somebodys-repository"
        for name in TAKEN:
            (self.started_in / name).mkdir(parents=True)
            (self.started_in / name / "__init__.py").write_text('raise ImportError("the user\'s own")\n')
        self.folder = RunFolder(root / "runs" / "smoke")
        self.settings = [
            "-c", str(SMOKE), f"run.folder={root / 'runs'}", f"model.path={self.folder.cold_start}",
        ]  # fmt: skip
        self.metrics_port = free_port(count=4)  # buffer, learner, two generators
        self.scraper = Scraper(range(self.metrics_port, self.metrics_port + 4))
        self.killed: subprocess.CompletedProcess[str] | None = None
        self.finished: subprocess.CompletedProcess[str] | None = None

    def start(self, *words: str) -> subprocess.Popen[str]:
        command = [str(Path(sys.executable).with_name("vcppo")), *words]
        return subprocess.Popen(command, cwd=self.started_in, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def vcppo(self, *words: str) -> subprocess.CompletedProcess[str]:
        return finish(self.start(*words))

    def events(self, process: str) -> list[dict[str, Any]]:
        path = self.folder.log_file(process)
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def pids(self) -> list[int]:
        return [each["pid"] for each in self.events("launcher") if each["event"] == "process_started"]


def finish(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for the end; a process that outlives its deadline is told to stop and fails the test by its output."""
    try:
        out, err = process.communicate(timeout=STAGE_DEADLINE_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        out, err = process.communicate(timeout=90)
        pytest.fail(f"still running after {STAGE_DEADLINE_SECONDS} s: {err}\n{out[-4000:]}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def kill_learner_at(run: Run, up: subprocess.Popen[str]) -> None:
    """SIGKILL the learner as soon as it has written step `KILL_AT_STEP`."""
    deadline, tick = time.monotonic() + STAGE_DEADLINE_SECONDS, threading.Event()
    while time.monotonic() < deadline and up.poll() is None:
        steps = [row["step"] for row in read_metrics(run.folder.metrics_file("learner")) if row["stage"] == "rl"]
        if max(steps, default=0) >= KILL_AT_STEP:
            started = [
                e for e in run.events("launcher") if e["event"] == "process_started" and e["process"] == "learner"
            ]
            os.kill(started[-1]["pid"], signal.SIGKILL)
            return
        tick.wait(0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    run = Run(tmp_path_factory.mktemp("end_to_end"))
    cold_start = run.vcppo("sft", *run.settings)
    assert cold_start.returncode == 0, cold_start.stderr
    run.settings += [f"metrics.prometheus_port={run.metrics_port}", "logging.level=debug"]
    up = run.start("up", *run.settings, "launcher.learner_restarts=0")
    reader: list[subprocess.CompletedProcess[str]] = []
    thread = threading.Thread(target=lambda: reader.append(finish(up)))  # its pipes must not fill up
    thread.start()
    kill_learner_at(run, up)
    thread.join(STAGE_DEADLINE_SECONDS)
    assert reader, "`vcppo up` did not end after its learner was killed"
    run.killed = reader[0]
    run.finished = run.vcppo("up", *run.settings)
    run.scraper.stop()
    yield run
    redis_server.socket_path(run.folder.redis).unlink(missing_ok=True)


def test_killed_learner_stops_the_run_and_is_named(run: Run) -> None:
    assert run.killed is not None
    assert run.killed.returncode == 1
    assert run.killed.stderr.startswith("vcppo: learner was killed by SIGKILL")
    assert "same command resumes" in run.killed.stderr


def test_same_command_resumes_and_finishes(run: Run) -> None:
    assert run.finished is not None
    assert run.finished.returncode == 0, run.finished.stderr
    assert "(exact)" in run.finished.stdout
    data = RunData.load(run.folder)
    assert [row["step"] for row in data.rl] == list(range(1, data.config.rl.num_steps + 1))
    loaded = [event for event in run.events("learner") if event["event"] == "checkpoint_loaded"]
    assert len(loaded) == 1
    assert loaded[0]["policy_version"] >= KILL_AT_STEP - data.config.learner.checkpoint_every
    assert (run.folder.export / "config.json").exists()


def test_ledger_is_exact(run: Run) -> None:
    done = run.vcppo("ledger", *run.settings)
    assert done.returncode == 0, done.stderr
    ledger = RunData.load(run.folder).ledger
    assert ledger is not None
    config = load_config(run.folder.config)
    trained = config.rl.num_steps * config.rl.batch_size + config.value_pretraining.num_trajectories
    assert ledger["trained"] == trained
    assert ledger["rejected"] == 0


def test_every_trajectory_is_trained_once(run: Run) -> None:
    steps = {}
    for line in run.folder.trained_log.read_text().splitlines():
        row = json.loads(line)
        previous = steps.setdefault(row["step"], row)
        assert previous["trajectory_ids"] == row["trajectory_ids"]  # a replay trains the same ones
    counts = Counter(each for row in steps.values() for each in row["prompt_ids"])
    config = load_config(run.folder.config)
    assert len(counts) == config.rl.num_steps * config.rl.batch_size
    assert set(counts.values()) == {1}
    assert max(max(row["staleness"]) for row in steps.values()) <= config.rl.max_staleness


def test_the_runs_keys_are_made_at_the_first_start_and_shown_nowhere(run: Run) -> None:
    """Its config wants CURVE, so everything above went through it."""
    keys = run.folder.path / "keys"
    secrets = re.findall(r'secret-key = "(.{40})"', "".join(path.read_text() for path in keys.glob("*.key_secret")))
    assert len(secrets) == 3
    made = [event for event in run.events("launcher") if event["event"] == "keys_made"]
    assert len(made) == 1
    others = [path for path in run.folder.path.rglob("*") if path.is_file() and keys not in path.parents]
    for path in others:
        content = path.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), path


def test_weights_went_to_both_generators(run: Run) -> None:
    broadcasts = [event for event in run.events("learner") if event["event"] == "weights_broadcast"]
    assert len(broadcasts) >= 10
    for name in ("generator-0", "generator-1"):
        versions = [row.get("generator/policy_version") for row in read_metrics(run.folder.metrics_file(name))]
        assert max(version for version in versions if version is not None) >= 1


def test_value_pretraining_decided_once(run: Run) -> None:
    decision = RunData.load(run.folder).decision
    assert decision is not None
    assert decision["passed"]
    decided = [event for event in run.events("learner") if event["event"] == "value_pretraining_decided"]
    assert len(decided) == 1


def test_no_process_writes_bare_lines(run: Run) -> None:
    """What Python writes comes through logging; what C++ writes has its mark, and the level that says."""
    bare = []
    for path in run.folder.logs.glob("*.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()):
            assert {"time", "level", "service", "event"} <= set(record)
            if record.get("unstructured") and "location" not in record and path.stem != "redis":
                bare.append((path.stem, record["event"]))
    assert bare == []


def test_one_trajectory_is_followed_across_services(run: Run) -> None:
    trained = json.loads(run.folder.trained_log.read_text().splitlines()[2])["trajectory_ids"][0]
    text = run.vcppo("logs", str(run.folder.path), "--trajectory", trained, "--json").stdout
    life = [(line["service"].partition("-")[0], line["event"]) for line in map(json.loads, text.splitlines())]
    expected = [
        ("learner", "prompts_issued"), ("generator", "prompts_leased"), ("generator", "trajectory_sent"),
        ("buffer", "trajectories_appended"), ("learner", "prompts_claimed"), ("learner", "trajectories_trained"),
        ("learner", "prompts_committed"),
    ]  # fmt: skip
    found = [step for step in life if step in expected]
    assert sorted(found) == sorted(expected)  # who hears of a move may write it down before who made it
    for service in ("learner", "generator", "buffer"):
        assert [each for each in found if each[0] == service] == [each for each in expected if each[0] == service]
    piped = subprocess.run(  # the same through a pipe, with compose's prefixes
        [sys.executable, "-m", "vcppo.deploy.cli", "logs", "--trajectory", trained, "--service", "buffer"],
        input="".join(f"{path.stem}-1  | {line}\n" for path in run.folder.logs.glob("*.jsonl")
                      for line in path.read_text().splitlines()),
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert piped.count("trajectories_appended") == 1


@pytest.mark.skipif(shutil.which("jq") is None, reason="docs/logs.md's recipes need jq, which is not on PATH")
def test_recipes_of_the_logs_page_find_something(run: Run) -> None:
    recipes = re.findall(r"```jq\n(.*?)```", (ROOT / "docs" / "logs.md").read_text(), re.DOTALL)
    trained = json.loads(run.folder.trained_log.read_text().splitlines()[2])["prompt_ids"][0]
    assert len(recipes) >= 8
    for recipe in recipes:
        command = recipe.replace("runs/demo", str(run.folder.path)).replace("rl-00000012-0", trained)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), recipe
        assert done.stdout.strip(), f"finds nothing: {recipe}"


def test_all_that_the_dashboard_shows_was_served(run: Run) -> None:
    dashboard = (ROOT / "deploy/monitoring/grafana/dashboards/vcppo.json").read_text()
    served = set().union(*run.scraper.names.values())
    assert set(re.findall(r"\bvcppo_\w+", dashboard)) - served == set()
    assert {"learner", "buffer", "generator-0", "generator-1"} <= set(run.scraper.names)
    assert run.scraper.newest["vcppo_store_ledger_difference", "buffer"] == 0
    assert run.scraper.newest["vcppo_generator_tokens_total", "generator-0"] > 0
    assert run.scraper.newest["vcppo_generator_paused_seconds_total", "generator-0"] > 0


def test_nothing_is_left_running(run: Run) -> None:
    assert not redis_server.is_running(run.folder.redis)
    assert not [pid for pid in run.pids() if Path(f"/proc/{pid}").exists()]
    leftover = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(run.folder.path).encode() in path.read_bytes():
                leftover.append(path)
        except OSError:
            continue  # ended while we looked
    assert leftover == []


def test_report_is_written(run: Run) -> None:
    done = run.vcppo("report", str(run.folder.path))
    assert done.returncode == 0, done.stderr
    page = run.folder.report / "report.html"
    assert page.read_text().count("data:image/png") >= 8
    assert (run.folder.report / "summary.png").stat().st_size > 10_000


def test_versions_were_evaluated_on_the_way_each_by_itself(run: Run) -> None:
    """Before and after the kill; the benchmark's problems too; none of them was trained."""
    found = RunData.load(run.folder)
    assert [row["step"] for row in found.evaluations] == [0, 4, 8, 12]
    for row in found.evaluations:
        assert row["eval/num_problems"] == 12 and row["eval/num_lost"] == 0
        assert row["eval/accuracy_low"] <= row["eval/accuracy"] <= row["eval/accuracy_high"]
        assert 0 <= row["eval/longer/accuracy"] <= 1
    rows = read_evaluations(run.folder.evaluations)
    assert [row["versions_seen"] for row in rows] == [[0], [4], [8], [12]]
    assert found.ledger is not None and found.ledger["evaluated"] == 4 * 24
    best = max(rows, key=lambda row: (row["pass_at_1"], -row["version"]))["version"]
    (event,) = [each for each in run.events("learner") if each["event"] == "policy_exported"][-1:]
    assert event.get("policy_version", 12) == best

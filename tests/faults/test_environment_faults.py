"""A run on a user's environment, hit in the middle of a tool call, of a turn and of a reward call.

The environment does as its FLAGS say: a file names what the next call of that kind is to wait at, whoever takes the
file away first writes down its pid, starts a grandchild that leaves its session, and waits until it is told to go on.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.rig.reward_server import RewardServer
from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.errors import EXIT_OK
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trained_log import check_trained_once
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData, is_exact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS, BATCH, RECORDED = 24, 16, 32
LIMIT_SECONDS = 300.0
HIDDEN = f"{700 + os.getpid() / 1e7:.7f}"  # finds the grandchildren of this test among all others
ENVIRONMENT = """
import json, os, time, urllib.request
from pathlib import Path
from vcppo import Environment, Observation, Problem

FLAGS, URL, HIDDEN = Path(FLAGS), URL, HIDDEN


class Held(Environment):
    def problems(self, split, seed, start, count):
        return [Problem(f"{i % 10}+{i // 10 % 10}=", {"number": i}) for i in range(start, start + count)]

    def reset(self, answer):
        self.number, self.turns = answer["number"], 0
        with (FLAGS / "begun.jsonl").open("a") as journal:
            journal.write(f"{self.number}\\n")
        self.wait_if_told("reset", wait=False)

    def step(self, action):
        self.turns += 1
        if self.turns == 1:
            self.wait_if_told("step")
            return Observation("7", 0.125)
        item = {"items": [{"id": "x-512"}]}  # worth .5 there
        request = urllib.request.Request(URL, json.dumps(item).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as reply:
            return Observation(reward=json.load(reply)["items"][0]["reward"], done=True)

    def wait_if_told(self, kind, wait=True):
        try:
            (FLAGS / kind).unlink()
        except FileNotFoundError:
            return
        if os.fork() == 0:
            os.setsid()
            os.closerange(0, 256)
            os.execvp("sleep", ["sleep", HIDDEN])
        (FLAGS / "told").write_text(json.dumps({"pid": os.getpid(), "number": self.number}))
        os.replace(FLAGS / "told", FLAGS / f"{kind}.json")
        while wait and not (FLAGS / "go_on").exists():
            time.sleep(0.02)
"""
CONFIG = {
    "run": {"name": "held", "folder": "runs"},
    "model": {"path": "model", "dtype": "float32"},
    "task": {"name": "held_environment:Held", "max_turns": 2, "verifier_timeout_seconds": 150.0},
    "sampling": {"max_response_tokens": 40, "stop": list("0123456789")},  # a turn is a few symbols and a digit
    "value_pretraining": {
        "num_trajectories": RECORDED, "batch_size": 16, "max_steps": 2, "eval_every": 1, "held_out_fraction": 0.5,
        "min_explained_variance": -10.0,
    },
    "rl": {"num_steps": NUM_STEPS, "batch_size": BATCH, "group_size": 4},
    "algorithm": {"num_mini_batches": 2},
    "learner": {"num_threads": 1, "device": "cpu", "checkpoint_every": 3},
    "generator": {
        "num_generators": 1, "max_in_flight": 16, "max_model_len": 96, "enforce_eager": True, "kv_cache_gib": 0.25,
        "lease_seconds": 6.0, "heartbeat_seconds": 1.0,
    },
    "metrics": {"samples_per_step": BATCH},
    "launcher": {"restart_backoff_seconds": 0.2, "generator_restarts": 20, "learner_restarts": 20},
    "logging": {"format": "json", "tensorboard": False},
}  # fmt: skip


class HeldRun:
    """`vcppo up`, and the places where its environment waits."""

    def __init__(self, folder: Path, server: RewardServer) -> None:
        make_tiny_model(folder / "model", 64)
        self.flags, self.server = folder / "flags", server
        self.flags.mkdir()
        values = {"FLAGS": str(self.flags), "URL": f"{server.url}/reward", "HIDDEN": HIDDEN}
        names = "FLAGS, URL, HIDDEN = Path(FLAGS), URL, HIDDEN"
        given = f"FLAGS, URL, HIDDEN = Path({values['FLAGS']!r}), {values['URL']!r}, {values['HIDDEN']!r}"
        (folder / "held_environment.py").write_text(ENVIRONMENT.replace(names, given))
        (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
        self.folder, self.terminal = RunFolder(folder / "runs" / "held"), folder / "terminal.txt"
        command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", "run.yaml"]
        with self.terminal.open("wb") as out:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.up = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
        self.environments: list[int] = []

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self.up.poll() is None and time.monotonic() < deadline, (
                f"{what}\n{self.terminal.read_text()[-6000:]}"
            )
            time.sleep(0.02)

    def records(self, event: str) -> list[dict[str, Any]]:
        lines = self.terminal.read_text().splitlines()
        return [record for line in lines if line.startswith("{") and (record := json.loads(line))["event"] == event]

    def kill(self, process: str) -> None:
        started = [each["pid"] for each in self.records("process_started") if each["process"] == process]
        os.kill(int(started[-1]), signal.SIGKILL)

    def steps_more(self, count: int) -> None:
        """Prompts that were lost are done before the next blow: one that loses several in a row is given up."""

        def done() -> int:
            rows = read_metrics(self.folder.metrics_file("learner"))
            return max((row["step"] for row in rows if row["stage"] == "rl"), default=0)

        wanted = done() + count
        self.until(lambda: done() >= wanted, f"step {wanted} never came")

    def in_the_middle_of(self, kind: str) -> dict[str, int]:
        """Wait until a call of this kind has begun; it goes on waiting."""
        told = self.flags / f"{kind}.json"
        told.unlink(missing_ok=True)
        (self.flags / "go_on").unlink(missing_ok=True)
        (self.flags / kind).touch()
        self.until(told.exists, f"no {kind} was called")
        found: dict[str, int] = json.loads(told.read_text())
        self.environments.append(found["pid"])
        return found

    def begun(self, number: int) -> int:
        """Rollouts of this problem that were begun."""
        return Counter((self.flags / "begun.jsonl").read_text().split())[str(number)]

    def end(self) -> None:
        if self.up.poll() is None:
            self.up.terminate()
            self.up.wait(90)
        redis_server.socket_path(self.folder.redis).unlink(missing_ok=True)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[HeldRun]:
    server = RewardServer()
    run = HeldRun(tmp_path, server)
    yield run
    run.end()
    server.close()


def hidden() -> list[str]:
    return subprocess.run(["pgrep", "-f", HIDDEN], capture_output=True, text=True, check=False).stdout.split()


def test_kills_in_the_middle_of_a_tool_call_a_turn_and_a_reward_call(held: HeldRun) -> None:
    held.steps_more(2)
    held.in_the_middle_of("step")
    os.kill(held.environments[-1], signal.SIGKILL)  # the tool's process dies: the call is a crash
    held.until(lambda: bool(held.records("environment_killed")), "nobody noticed the environment's end")
    held.steps_more(1)
    lost = [held.in_the_middle_of("step")["number"]]
    held.kill("generator-0")  # the whole generator, its environment in the middle of a call
    held.steps_more(1)
    held.in_the_middle_of("step")
    held.kill("learner")  # and goes on where its checkpoint is; the call has its answer meanwhile
    (held.flags / "go_on").touch()
    held.steps_more(2)
    lost.append(held.in_the_middle_of("reset")["number"])
    held.kill("generator-0")  # its first turn is being sampled
    held.steps_more(1)
    held.server.modes = ["hang"]
    held.until(lambda: not held.server.modes, "no reward was asked for")
    held.kill("generator-0")
    assert held.up.wait(LIMIT_SECONDS) == EXIT_OK, held.terminal.read_text()[-6000:]

    ledger = RunData.load(held.folder).ledger
    assert ledger is not None and is_exact(ledger) and ledger["rejected"] == ledger["expired"] == 0
    assert ledger["issued"] == ledger["trained"] == RECORDED + NUM_STEPS * BATCH
    assert check_trained_once(held.folder.trained_log, max_staleness=1) == NUM_STEPS * BATCH
    assert all(held.begun(number) > CONFIG["rl"]["group_size"] for number in lost)  # type: ignore[index]
    started = [int(each["pid"]) for each in held.records("process_started")]
    assert [pid for pid in [*started, *held.environments] if Path(f"/proc/{pid}").exists()] == []
    assert hidden() == []

    rule = load_config(held.folder.config).reward_rule
    tables = [SampleTable(path) for path in sorted(held.folder.samples.glob("step-*"))]
    trained = [
        (head, len(table.tokens(number)["token_ids"])) for table in tables for number, head in enumerate(table.heads())
    ]
    assert len(trained) == NUM_STEPS * BATCH and len({head["prompt_id"] for head, _ in trained}) == len(trained)
    finished = [head for head, _ in trained if head["finish_reason"] == "stop" and head["outcome"] != "crash"]
    assert len(finished) > len(trained) / 2
    for head, length in trained:
        rule.check(head["outcome"], head["reward"], head["components"], length, tuple(head["turn_rewards"]))
    assert {(head["reward"], tuple(head["turn_rewards"])) for head in finished} == {(0.625, (0.125, 0.5))}

"""A run of an agent that rewrites its conversation, with learner and generators killed in the middle of rollouts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.rig.scripted import make_tiny_model
from tests.integration.test_agents_run import TEMPLATE
from tests.paths import ROOT
from vcppo.common.errors import EXIT_OK
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trained_log import check_trained_once, read_trained_log, replays_differ
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData, is_exact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS, BATCH = 9, 16
LIMIT_SECONDS = 240.0
MODULE = """
import openai

from vcppo import Agent, Problem


class Rewriting(Agent):
    def problems(self, split, seed, start, count):
        return [Problem([{"role": "user", "content": "1+1"}], {"number": i}) for i in range(start, start + count)]

    async def run(self, answer, endpoint):
        client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0, timeout=60)
        for summary in range(1 + answer["number"] % 3):
            chat = [{"role": "user", "content": f"{answer['number'] % 10}+{summary}"}]
            for more in ("+2", "+3"):
                made = await client.chat.completions.create(model=endpoint.model, messages=chat, max_tokens=4)
                chat += [made.choices[0].message, {"role": "user", "content": more}]
        return sum(letter.isdigit() for letter in made.choices[0].message.content) / 4
"""
CONFIG = {
    "run": {"name": "rewriting", "folder": "runs"},
    "model": {"path": "model", "dtype": "float32"},
    "task": {"name": "my_agent:Rewriting", "max_turns": 6, "max_segments": 3},
    "sampling": {"max_response_tokens": 16},
    "critic": {"init": "policy"},
    "value_pretraining": {"num_trajectories": 0},
    "rl": {"num_steps": NUM_STEPS, "batch_size": BATCH, "group_size": 4},
    "algorithm": {"advantage_estimator": "leave_one_out", "num_mini_batches": 2},
    "learner": {"num_threads": 1, "device": "cpu", "checkpoint_every": 3},
    "generator": {
        "num_generators": 1, "max_in_flight": 16, "max_model_len": 96, "enforce_eager": True, "kv_cache_gib": 0.25,
        "lease_seconds": 6.0, "heartbeat_seconds": 1.0,
    },
    "metrics": {"samples_per_step": 3 * BATCH},
    "launcher": {"restart_backoff_seconds": 0.2, "generator_restarts": 20, "learner_restarts": 20},
    "logging": {"format": "json", "tensorboard": False},
}  # fmt: skip


class Up:
    """`vcppo up` of it."""

    def __init__(self, folder: Path) -> None:
        make_tiny_model(folder / "model", 64)
        (folder / "model" / "chat_template.jinja").write_text(TEMPLATE)
        (folder / "my_agent.py").write_text(MODULE)
        (folder / "run.yaml").write_text(yaml.safe_dump(CONFIG))
        self.folder, self.terminal = RunFolder(folder / "runs" / "rewriting"), folder / "terminal.txt"
        command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", "run.yaml"]
        with self.terminal.open("wb") as out:
            environment = os.environ | {"PYTHONPATH": str(ROOT)}
            self.process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, (
                f"{what}\n{self.terminal.read_text()[-6000:]}"
            )
            time.sleep(0.05)

    def steps_more(self, count: int) -> None:
        def done() -> int:
            rows = read_metrics(self.folder.metrics_file("learner"))
            return max((row["step"] for row in rows if row["stage"] == "rl"), default=0)

        wanted = done() + count
        self.until(lambda: done() >= wanted, f"step {wanted} never came")

    def kill(self, name: str) -> None:
        lines = [json.loads(line) for line in self.terminal.read_text().splitlines() if line.startswith("{")]
        started = [each["pid"] for each in lines if each["event"] == "process_started" and each["process"] == name]
        os.kill(int(started[-1]), signal.SIGKILL)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(90)
        redis_server.socket_path(self.folder.redis).unlink(missing_ok=True)


def test_killed_in_the_middle_every_conversation_is_trained_once(tmp_path: Path) -> None:
    up = Up(tmp_path)
    try:
        up.steps_more(2)
        up.kill("learner")  # two steps are claimed and in no checkpoint: they are trained again
        up.steps_more(2)
        up.kill("generator-0")  # its sessions end in the middle of their conversations
        up.steps_more(1)
        up.kill("buffer")
        assert up.process.wait(LIMIT_SECONDS) == EXIT_OK, up.terminal.read_text()[-6000:]
    finally:
        up.end()
    ledger = RunData.load(up.folder).ledger
    assert ledger is not None and is_exact(ledger) and ledger["rejected"] == ledger["expired"] == 0
    assert ledger["issued"] == ledger["trained"] == NUM_STEPS * BATCH
    assert check_trained_once(up.folder.trained_log, max_staleness=1) == NUM_STEPS * BATCH
    assert replays_differ(up.folder.trained_log) == []
    lines = up.folder.trained_log.read_text().splitlines()
    assert len(lines) > NUM_STEPS  # some were replayed
    samples = [head for path in sorted(up.folder.samples.glob("step-*")) for head in SampleTable(path).heads()]
    named = [
        name
        for line in read_trained_log(up.folder.trained_log).values()
        for name in (*line["trajectory_ids"], *line["segment_ids"])
    ]
    assert sorted(named) == sorted(head["id"] for head in samples)
    assert_each_rollout_is_whole(samples)


def assert_each_rollout_is_whole(samples: list[dict[str, Any]]) -> None:
    """One, two or three conversations of two turns each, of one start of one generator, all of one reward."""
    conversations = Counter(head["prompt_id"] for head in samples)
    assert len(conversations) == NUM_STEPS * BATCH and set(conversations.values()) == {1, 2, 3}
    assert {head["turns"] for head in samples} == {2}
    assert len({(head["prompt_id"], head["id"].partition("#")[0], head["reward"]) for head in samples}) == len(
        conversations
    )
    assert all(sorted(head["segment"] for head in samples if head["prompt_id"] == name) == list(range(count))
               for name, count in conversations.items())  # fmt: skip

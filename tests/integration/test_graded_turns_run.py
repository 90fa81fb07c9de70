"""A short real run of an environment with a reward function, a format, a service and length cost; its evaluation."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.rig.reward_server import RewardServer, reward_of
from tests.integration.rig.scripted import make_tiny_model
from tests.integration.test_graded_run import CONFIG
from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODULE = """
from vcppo import Environment, Observation, Problem


class Twice(Environment):
    def problems(self, split, seed, start, count):
        return [Problem(f"{i % 10}+1=", {"left": i % 10}) for i in range(start, start + count)]

    async def reset(self, answer):
        self.turns = 0

    async def step(self, action):
        self.turns += 1
        return Observation("2+", 0.125 * self.turns, done=self.turns == 2)


def variety(answer, response, finish_reason, messages):
    assert messages[0]["content"] == f"{answer['left']}+1="
    if response.count("7") > 2:
        raise ValueError("too many sevens")
    return len(set(response)) / 64
"""


def up(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-4000:]}"


def test_every_reward_of_a_rollout_is_its_turns_and_its_parts(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 64)
    (tmp_path / "my_turns.py").write_text(MODULE)
    server = RewardServer()
    server.outcome = "unparsable"
    task = {
        "name": "my_turns:Twice", "max_turns": 3, "rewards": [{"name": "my_turns:variety", "weight": 0.5}],
        "format_pattern": r"\d", "reward_weights": {"format": 0.25, "source": 0.5}, "length_cost": 0.01,
        "reward_service": {"url": f"{server.url}/reward", "send_messages": True},
    }  # fmt: skip
    config = CONFIG | {"run": {"name": "turns", "folder": "runs"}, "task": task, "eval": {"num_problems": 8}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    folder = RunFolder(tmp_path / "runs" / "turns")
    try:
        up(tmp_path, "up", "-c", "run.yaml")
        asked = len(server.requests)
        up(tmp_path, "eval", "-c", "run.yaml", "--model", str(tmp_path / "model"))
        assert len(server.requests) > asked  # it gives outcomes, which evaluations count
    finally:
        server.close()
        redis_server.socket_path(folder.redis).unlink(missing_ok=True)
    rule, parts = load_config(folder.config).reward_rule, {"base", "variety", "format", "source", "length_cost"}
    recorded = list(read_trajectories(folder.value_pretraining / RECORD_FILE))
    trained = [head for path in sorted(folder.samples.glob("step-*")) for head in SampleTable(path).heads()]
    assert (len(recorded), len(trained)) == (32, 32)
    for each in recorded:
        rule.check(each.outcome, each.reward, each.components, len(each.response_token_ids), each.turn_rewards)
        assert each.outcome in ("unparsable", "crash")
        if each.outcome == "unparsable":
            assert each.components.keys() == parts and each.components["source"] == reward_of(each.prompt_id)
            assert sum(each.turn_rewards) == each.components["base"]
    assert any(each.num_turns > 1 for each in recorded)
    for head in trained:
        assert head["components"].keys() == (parts if head["outcome"] == "unparsable" else {"length_cost"})
    rows = list(read_metrics(folder.metrics_file("learner")))
    for prefix in ("vp/reward/", "reward/"):
        row = next(row for row in rows if f"{prefix}variety" in row)
        assert all(row[prefix + name] is not None for name in parts)
    ledger = RunData.load(folder).ledger
    assert ledger is not None and ledger["rejected"] == 0
    assert {"role", "content"} <= server.requests[0]["items"][0]["messages"][-1].keys()

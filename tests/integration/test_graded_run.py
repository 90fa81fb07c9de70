"""A short real run on graded rewards: a user's verdicts with numbers, a user's function, shaping; what it leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trajectory import Outcome
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

MODULE = """
from vcppo import Verdict
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic


class Graded(ChainArithmetic):
    def verify(self, answer, response, finish_reason):
        found = super().verify(answer, response, finish_reason)
        if "7" in response:  # now and then no number, which is a crash and never trained
            return found._replace(reward=float("nan"))
        digits = sum(character.isdigit() for character in response)
        return found._replace(reward=digits / (1 + len(response)), components={"digits": digits})


def brevity(answer, response, finish_reason):
    return 1 / (1 + len(response))
"""
CONFIG = {
    "run": {"name": "graded", "folder": "runs"},
    "model": {"path": "model", "dtype": "float32"},
    "task": {
        "name": "my_graded:Graded", "options": {"num_operations": 1, "num_digits": 1, "max_multiplier": 3},
        "rewards": [{"name": "my_graded:brevity", "weight": 0.5}], "soft_overlong_cache": 8, "length_cost": 0.01,
        "format_pattern": r"\d", "reward_weights": {"format": 0.25},
    },
    "sampling": {"max_response_tokens": 16},
    "critic": {"head": "two_hot", "num_bins": 21},
    "value_pretraining": {
        "num_trajectories": 32, "batch_size": 16, "max_steps": 2, "eval_every": 1, "held_out_fraction": 0.5,
        "min_explained_variance": -10.0,
    },
    "rl": {"num_steps": 2, "batch_size": 16, "group_size": 4},
    "algorithm": {"num_mini_batches": 2},
    "learner": {"num_threads": 1, "device": "cpu"},
    "generator": {
        "num_generators": 1, "max_in_flight": 16, "max_model_len": 96, "enforce_eager": True, "kv_cache_gib": 0.25,
    },
}  # fmt: skip


class Graded(NamedTuple):
    """What `RewardRule.check` takes."""

    outcome: Outcome
    reward: float
    components: dict[str, float]
    num_tokens: int


@dataclass
class GradedRun:
    """Where it was started, and its folder."""

    root: Path

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.root / "runs" / "graded")

    def vcppo(self, *words: str, exit_code: int = 0) -> str:
        command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
        done = subprocess.run(
            command, cwd=self.root, capture_output=True, text=True, timeout=500, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == exit_code, f"{done.stderr}\n{done.stdout[-4000:]}"
        return done.stdout + done.stderr

    def trained(self) -> list[Graded]:
        return [
            Graded(head["outcome"], head["reward"], head["components"], len(table.tokens(number)["token_ids"]))
            for table in map(SampleTable, sorted(self.folder.samples.glob("step-*")))
            for number, head in enumerate(table.heads())
        ]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GradedRun]:
    found = GradedRun(tmp_path_factory.mktemp("graded"))
    make_tiny_model(found.root / "model", 64)
    (found.root / "my_graded.py").write_text(MODULE)
    (found.root / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    wrong = found.vcppo("up", "-c", "run.yaml", "task.rewards=[{name: 'my_graded:brevty'}]", exit_code=2)
    assert "task.rewards: my_graded:brevty can't be imported" in wrong
    assert not found.folder.path.exists()  # refused before anything started
    found.vcppo("up", "-c", "run.yaml")
    yield found
    redis_server.socket_path(found.folder.redis).unlink(missing_ok=True)


def test_every_reward_that_was_trained_is_that_of_the_rule(run: GradedRun) -> None:
    rule = load_config(run.folder.config).reward_rule
    recorded = [
        Graded(each.outcome, each.reward, each.components, len(each.response_token_ids))
        for each in read_trajectories(run.folder.value_pretraining / RECORD_FILE)
    ]
    trained = run.trained()
    assert len(recorded) == 32 and len(trained) == 32
    for each in [*recorded, *trained]:
        rule.check(*each)
        shaping = {"soft_overlong", "length_cost"}
        parts = {"base", "digits", "brevity", "format"} | shaping
        assert each.components.keys() == (shaping if each.outcome == "crash" else parts)
    assert len({each.reward for each in recorded}) > 10
    data = RunData.load(run.folder)
    assert data.ledger is not None and data.ledger["rejected"] == 0


def test_each_part_has_its_curve_and_the_means_are_those_of_the_batch(run: GradedRun) -> None:
    rows = [row for row in read_metrics(run.folder.metrics_file("learner")) if row["stage"] == "rl"]
    for step, row in enumerate(rows, start=1):
        batch = SampleTable(run.folder.samples / f"step-{step:06d}.parquet").heads()  # all of it is kept
        assert row["reward/mean"] == pytest.approx(sum(each["reward"] for each in batch) / 16, abs=1e-6)
        for name in ("brevity", "digits", "base", "format", "soft_overlong"):
            values = [each["components"][name] for each in batch if name in each["components"]]
            assert row[f"reward/{name}"] == pytest.approx(sum(values) / len(values)), name
    recorded = [row for row in read_metrics(run.folder.metrics_file("learner")) if "vp/reward/brevity" in row]
    assert recorded


def test_samples_and_report_show_them(run: GradedRun) -> None:
    assert "brevity 0." in run.vcppo("samples", "graded", "--step", "all", "--limit", "0")
    run.vcppo("report", str(run.folder.path))
    assert (run.folder.report / "reward_components.png").stat().st_size > 5000

"""A whole run of several turns through `vcppo`: cold start, value pretraining, RL, evaluation, samples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import RIG
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.run.run_data import RunData

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def vcppo(folder: Path, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("vcppo")), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    return done.stdout


def test_a_policy_learns_to_ask_and_to_repeat_what_it_was_told(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "runs" / "turns")
    settings = ["-c", str(RIG / "turns.yaml"), f"run.folder={tmp_path / 'runs'}", f"model.path={run.cold_start}"]
    vcppo(tmp_path, "sft", *settings)
    vcppo(tmp_path, "up", *settings)
    rows = [row for row in read_metrics(run.metrics_file("learner")) if row["stage"] == "rl"]
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert 1.5 < rows[-1]["turns/mean"] <= 3 and 0 < rows[-1]["turns/masked_fraction"] < 0.5
    first, last = (sum(row["reward/accuracy"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.1, (first, last)
    on_the_way = RunData.load(run).evaluations
    assert [(row["step"], row["eval/num_problems"], row["eval/num_lost"]) for row in on_the_way] == [
        (6, 16, 0),
        (12, 16, 0),
    ]
    calls = sum(row["generator/environment_calls"] for row in read_metrics(run.metrics_file("generator-0")))
    assert calls >= 2 * 12 * 32
    export = tmp_path / "runs" / "turns" / "export"
    vcppo(tmp_path, "eval", *settings, "eval.num_problems=32", "--model", str(export))
    lines = [
        json.loads(line) for line in vcppo(tmp_path, "samples", str(tmp_path / "runs" / "turns"), "--json").splitlines()
    ]
    assert any(line.get("turns") == 2 for line in lines)

"""`vcppo demo --task tools`, shorter: from random weights, a policy learns that asking a calculator pays."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def vcppo(folder: Path, *words: str) -> str:
    command = [str(Path(sys.executable).with_name("vcppo")), *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, done.stderr + done.stdout[-3000:]
    return done.stdout


def test_a_policy_learns_to_use_a_calculator(tmp_path: Path) -> None:
    said = vcppo(tmp_path, "demo", "--task", "tools", "rl.num_steps=14", "eval.num_problems=128")
    assert "All as it should be" in said  # the ledger, the gate, the bound on staleness, and accuracy
    run = RunFolder(tmp_path / "runs" / "demo-tools")
    rows = [row for row in read_metrics(run.metrics_file("learner")) if row["stage"] == "rl"]
    assert len(rows) == 14
    first, last = (sum(row["turns/tool_calls"] for row in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.1, (first, last)
    assert all(row["turns/tool_errors"] <= row["turns/tool_calls"] < row["turns/mean"] for row in rows)
    calls = sum(row["generator/tool_calls"] for row in read_metrics(run.metrics_file("generator-0")))
    assert calls >= sum(row["turns/tool_calls"] * 64 for row in rows)
    assert (run.report / "turns.png").exists()
    lines = [
        json.loads(line) for line in vcppo(tmp_path, "samples", str(run.path), "--json", "--limit", "0").splitlines()
    ]
    asked = [line["response"] for line in lines if line.get("turns") == 2]
    assert any('"expression": "' in each and "<tool_response>" in each for each in asked)

"""A run whose learner and engine share the one GPU there is said to be: who starts when, and that it trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.paths import RIG, ROOT
from vcppo.common.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SETTINGS = [
    "generator.num_generators=1", "launcher.share_gpus=true", "rl.num_steps=2", "sft.phases=[{steps: 10}]",
    "algorithm.advantage_estimator=group_mean", "value_pretraining.num_trajectories=0", "eval.every=0",
    "eval.at_start=false", "eval.benchmarks=[]",
]  # fmt: skip


def one_gpu(command: str, folder: RunFolder) -> subprocess.CompletedProcess[str]:
    """A command of `vcppo` on that machine."""
    words = [f"run.folder={folder.path.parent}", f"model.path={folder.cold_start}", *SETTINGS]
    return subprocess.run(
        [sys.executable, str(RIG / "one_gpu.py"), command, "-c", str(RIG / "smoke.yaml"), *words],
        cwd=folder.path.parent.parent, capture_output=True, text=True, timeout=280, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_engines_come_up_before_the_learner_and_weights_go_by_gloo(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "runs" / "smoke")
    for command in ("sft", "up"):
        done = one_gpu(command, folder)
        assert done.returncode == 0, done.stderr + done.stdout[-4000:]

    def events(process: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in folder.log_file(process).read_text().splitlines()]

    placed = [each["devices"] for each in events("launcher") if each["event"] == "placed"]
    assert placed == ["learner on 0; generator-0 on 0"]
    started = {each["process"]: each["time"] for each in events("launcher") if each["event"] == "process_started"}
    ready = next(each["time"] for each in events("generator-0") if each["event"] == "ready")
    assert started["generator-0"] < ready <= started["learner"]
    built = [each["backend"] for each in events("learner") if each["event"] == "weight_group_rebuilt"]
    assert set(built) == {"gloo"}
    versions = [each["policy_version"] for each in events("learner") if each["event"] == "weights_broadcast"]
    assert versions == [0, 1]  # those of the last step are exported, and nobody generates with them

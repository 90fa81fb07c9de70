"""A pretrained model in a user's environment of two turns with a graded reward: the blocks of docs/environments.md."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PAGE = ROOT / "docs" / "environments.md"
HEADING = "## A graded reward, in two turns"
NUM_STEPS, BATCH = 2, 16
SHORT = [
    "model.dtype=bfloat16",
    "value_pretraining={num_trajectories: 32, batch_size: 16, max_steps: 1, eval_every: 1, held_out_fraction: 0.5}",
    "value_pretraining.min_explained_variance=-10",
    f"rl={{num_steps: {NUM_STEPS}, batch_size: {BATCH}, group_size: 4}}",
    "algorithm.num_mini_batches=2",
    f"metrics.samples_per_step={BATCH}",
]  # fmt: skip


def vcppo(folder: Path, *words: str) -> str:
    """As typed in the user's folder."""
    command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=900, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, f"{' '.join(words)} → {done.returncode}\n{done.stderr[-4000:]}\n{done.stdout[-4000:]}"
    return done.stdout


def test_a_users_thirty_lines_and_own_grades_train_a_pretrained_model(tmp_path: Path, real_job: Path) -> None:
    _, _, section = PAGE.read_text(encoding="utf-8").partition(HEADING)
    blocks = dict(re.findall(r"```(python|yaml)\n(.*?)```", section.partition("\n## ")[0], re.DOTALL))
    lines = [line for line in blocks["python"].splitlines() if line.strip()]
    assert len(lines) <= 30
    (tmp_path / "my_sums.py").write_text(blocks["python"])
    (tmp_path / "my.yaml").write_text(blocks["yaml"])
    (tmp_path / "model").symlink_to(real_job / "model")
    settings = ["-c", "my.yaml", *SHORT]
    assert "4" in vcppo(tmp_path, "check", *settings, "--generate", "4")
    vcppo(tmp_path, "up", *settings)
    vcppo(tmp_path, "ledger", "--run", "runs/sums")

    rows = [row for row in read_metrics(RunFolder(tmp_path / "runs" / "sums").metrics_file("learner"))
            if row["stage"] == "rl"]  # fmt: skip
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert all(1 < row["turns/mean"] <= 2 and row["turns/reward_by_turn"][0] < 0 for row in rows)
    shown = vcppo(tmp_path, "samples", "runs/sums", "--stage", "rl", "--json", "--limit", str(2 * BATCH))
    samples = [json.loads(line) for line in shown.splitlines()]
    both = [each for each in samples if len(each["turn_rewards"]) == 2]
    assert len(both) > len(samples) / 4  # others talk until they are cut
    for each in both:
        first, second = each["turn_rewards"]
        assert first == -0.25 and 0 <= second <= 1 and each["reward"] == pytest.approx(first + second)
        assert "That is not it." in each["response"]  # between the turns, as the chat template writes it
        assert each["outcome"] == ("correct" if second == 1 else "wrong")
    assert any(0 < each["turn_rewards"][1] < 1 for each in both)  # a grade, not right or wrong

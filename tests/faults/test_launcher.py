"""The launcher frozen for longer than every deadline, and woken: its children go on, and trained is what it was."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.records.trained_log import check_trained_once, replays_differ
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.chaos.chaos_run import RECIPE
from vcppo.deploy.chaos.faults.scene import freeze_seconds
from vcppo.deploy.run.run_data import JsonLinesTail
from vcppo.deploy.terminal.open_store import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_STEPS = 60
FREEZE_AFTER = 5
LIMIT_SECONDS = 600.0


def test_frozen_past_every_deadline_its_children_go_on_and_it_brings_the_run_to_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "frozen")
    settings = [
        "-c", str(RECIPE), f"run.folder={tmp_path}", "run.name=frozen", f"model.path={folder.cold_start}",
        f"rl.num_steps={NUM_STEPS}",
    ]  # fmt: skip
    command = [sys.executable, "-m", "vcppo.deploy.cli"]
    subprocess.run([*command, "sft", *settings], cwd=ROOT, check=True, capture_output=True, timeout=LIMIT_SECONDS)
    log = tmp_path / "up.log"
    with log.open("wb") as output:
        launcher = subprocess.Popen([*command, "up", *settings], cwd=ROOT, stdout=output, stderr=output)
    rows, steps = JsonLinesTail(folder.metrics_file("learner")), [0]

    def step() -> int:
        steps.extend(row["step"] for row in rows.read() if row.get("stage", "rl") == "rl" and "step" in row)
        return max(steps)

    try:
        deadline = time.monotonic() + LIMIT_SECONDS
        while step() < FREEZE_AFTER:
            assert launcher.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        os.kill(launcher.pid, signal.SIGSTOP)
        config = load_config(folder.config)
        frozen_at, before = time.monotonic(), step()
        while time.monotonic() < frozen_at + 1.2 * freeze_seconds("launcher", config):
            time.sleep(0.2)
        assert step() > before, "the children stood still with their launcher"
        os.kill(launcher.pid, signal.SIGCONT)
        assert launcher.wait(LIMIT_SECONDS) == 0, log.read_text()[-3000:]
    finally:
        if launcher.poll() is None:
            os.kill(launcher.pid, signal.SIGCONT)
            launcher.kill()
            launcher.wait(30)
    assert step() == NUM_STEPS
    assert check_trained_once(folder.trained_log, config.rl.max_staleness) == NUM_STEPS * config.rl.batch_size
    assert replays_differ(folder.trained_log) == []
    with open_store(config) as store:
        assert store.ledger().is_exact
        assert store.num_dead_letters() == 0
    restarted = [line for line in log.read_text().splitlines() if "process_restarting" in line]
    assert restarted == []

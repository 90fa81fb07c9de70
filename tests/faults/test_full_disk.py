"""A whole run on a small disk of its own, which fills up in the middle: it goes on by itself, and ends exact."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disks import small_disk
from tests.paths import ROOT
from vcppo.common.records.trained_log import check_trained_once
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.chaos.shortages import FilledDisk

FULL_SECONDS = 10.0
NUM_STEPS = 24

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", "96m", inodes=8000) as folder:
        yield folder


def vcppo(*words: str) -> list[str]:
    return [sys.executable, "-m", "vcppo.deploy.cli", *words]


def test_the_run_waits_for_room_and_ends_exact(disk: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    config = ["-c", "deploy/configs/chaos.yaml", f"model.path={model}"]
    short = "sft.phases=[{steps: 20, batch_size: 16, learning_rate: 4.0e-3, style: {long_fraction: 0.7}}]"
    made = [f"run.folder={tmp_path / 'sft'}", f"sft.output={model}", short]
    subprocess.run(vcppo("sft", *config, *made), cwd=ROOT, timeout=300, check=True, stdout=subprocess.DEVNULL)
    terminal = tmp_path / "terminal.txt"
    settings = [f"run.folder={disk}", "generator.num_generators=1", f"rl.num_steps={NUM_STEPS}", "security.curve=never"]
    with terminal.open("wb") as out:
        run = subprocess.Popen(vcppo("up", *config, *settings), cwd=ROOT, stdout=out, stderr=out)
    try:
        wait(lambda: any(each["event"] == "checkpoint_written" for each in records(terminal)), run, terminal)
        full = FilledDisk(disk)
        began = time.monotonic()
        while time.monotonic() - began < FULL_SECONDS:  # also of what is freed meanwhile
            full.strike()
            time.sleep(0.1)
        full.undo()
        assert run.wait(400) == 0, terminal.read_text()[-6000:]
    finally:
        run.kill()
    text = terminal.read_text()
    assert "(exact)" in text
    assert "Traceback" not in text
    waits = [each for each in records(terminal) if each["event"] in ("waiting_for_room", "process_waits_for_room")]
    assert {each["resource"] for each in waits} == {"disk space"}
    assert all(str(disk) in str(each.get("folder", disk)) for each in waits)
    assert not [each for each in records(terminal) if each["event"] in ("process_restarting", "log_lines_lost")]
    assert check_trained_once(RunFolder(disk / "small").trained_log, max_staleness=1) == 16 * NUM_STEPS
    alive = [each["pid"] for each in records(terminal) if each["event"] == "process_started"]
    assert [pid for pid in alive if Path(f"/proc/{pid}").exists()] == []


def records(terminal: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in terminal.read_text().splitlines() if line.startswith("{")]


def wait(condition: Callable[[], bool], run: subprocess.Popen[bytes], terminal: Path) -> None:
    until = time.monotonic() + 300
    while not condition():
        assert run.poll() is None and time.monotonic() < until, terminal.read_text()[-6000:]
        time.sleep(0.2)

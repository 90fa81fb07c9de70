"""A process that was frozen, and replaced meanwhile, wakes up: it is refused by name, ends, and has changed nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.faults.test_learner import HERE, SETTINGS
from tests.integration.conftest import RedisServer
from tests.integration.learner.test_learner import BATCH, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from tests.paths import ROOT
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.records.trained_log import check_trained_once, replays_differ

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECONDS = 240.0
# Where different things would come next: files of the step, a checkpoint, its commit, a broadcast.
FROZEN_AT = ("claimed", "logged", "staged", "published", "sending")
NUM_STEPS = 2 * len(FROZEN_AT) + 2


def start(run: Run, boundary: str, step: int) -> subprocess.Popen[bytes]:
    """A learner that freezes itself there."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DYING_BY": "SIGSTOP"}
    command = [sys.executable, str(HERE / "dying_learner.py"), boundary, str(step), "--config", str(run.folder.config)]
    with run.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


def wait_until_frozen(process: subprocess.Popen[bytes], run: Run) -> None:
    end = time.monotonic() + SECONDS
    while Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] != "T":
        assert process.poll() is None, run.tail()
        assert time.monotonic() < end, run.tail()
        time.sleep(0.02)


def content(run: Run, redis: RedisServer) -> dict[str, Any]:
    """All that a learner may change: every key of the run and every file but its own lines."""
    client = redis.store(run.name)._redis._client
    passing = (b":clock", b":none")
    keys = sorted(key for key in client.keys(f"vcppo:{{{run.name}}}:*") if not key.endswith(passing))
    own = {run.log, run.folder.stacks_file("learner")}
    files = [path for path in run.folder.path.rglob("*") if path.is_file() and path not in own]
    return {key.decode(): client.dump(key) for key in keys} | {
        str(path): sha256(path.read_bytes()).hexdigest() for path in files if ".processes" not in path.parts
    }


@pytest.fixture
def run(redis_process: RedisServer, tmp_path: Path) -> Iterator[Run]:
    make_tiny_model(tmp_path / "model")
    settings = {**SETTINGS, "rl": {**SETTINGS["rl"], "num_steps": NUM_STEPS}}
    made = Run(tmp_path, "frozen", redis_process.url, tmp_path / "model", **settings)
    generator = ScriptedGenerator(made.url, made.name)
    generator.start()
    yield made
    generator.stop()


def test_a_learner_frozen_at_any_boundary_changes_nothing_once_it_was_replaced(
    run: Run, redis_process: RedisServer, killed_at_the_end: Callable[[subprocess.Popen[bytes]], None]
) -> None:
    """Each is replaced by the next, which freezes at the next boundary; then the one before it wakes up."""
    before: subprocess.Popen[bytes] | None = None
    for number, boundary in enumerate(FROZEN_AT):
        step = 2 * number + (2 if boundary in ("staged", "published") else 1)  # checkpoints are on even ones
        process = start(run, boundary, step)
        killed_at_the_end(process)
        wait_until_frozen(process, run)
        if before is not None:
            wake(before, run, redis_process, number)
        before = process
    last = run.start()
    assert before is not None
    killed_at_the_end(last)
    run.finish(last)
    wake(before, run, redis_process, len(FROZEN_AT))
    ledger = run.store().ledger()
    assert ledger.is_exact
    assert (ledger.outstanding, ledger.trained) == (0, NUM_STEPS * BATCH)
    assert check_trained_once(run.folder.trained_log, 0) == NUM_STEPS * BATCH
    assert replays_differ(run.folder.trained_log) == []


def wake(old: subprocess.Popen[bytes], run: Run, redis: RedisServer, number: int) -> None:
    """Let learner `number` go on, which has a successor: it ends by its own, with a line, and nothing is different."""
    found = content(run, redis)
    old.send_signal(signal.SIGCONT)
    where = f"learner {number}, frozen at {FROZEN_AT[number - 1]!r}"
    assert old.wait(SECONDS) == EXIT_REFUSED, f"{where}\n{run.tail()}"
    assert content(run, redis) == found, where
    fatal = run.events("fatal")
    assert len(fatal) == number, where
    assert f"learner number {number} " in fatal[-1]["error"]
    assert "superseded by learner number" in fatal[-1]["error"]


@pytest.fixture
def killed_at_the_end() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started.append
    for process in started:
        process.kill()
        process.wait(10)

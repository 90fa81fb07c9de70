"""What would end a learner again and again: damaged payloads, poisoned trajectories. It goes on without them, and the
accounts are exact."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.learner.test_learner import BATCH, NUM_STEPS, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from tests.paths import ROOT
from vcppo.common.errors import EXIT_FAILURE, EXIT_REFUSED
from vcppo.common.records.trained_log import check_trained_once, read_trained_log
from vcppo.common.records.trajectory import Prompt
from vcppo.common.store.damage import damage_payload, flip_bit
from vcppo.deploy.terminal.reject_command import reject

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    make_tiny_model(folder)
    return folder


@pytest.fixture
def generate(redis_server: str) -> Iterator[Callable[..., ScriptedGenerator]]:
    started: list[ScriptedGenerator] = []

    def start(run: Run, allow: Callable[[Prompt], bool] = lambda _: True) -> ScriptedGenerator:
        started.append(ScriptedGenerator(run.url, run.name, allow))
        started[-1].start()
        return started[-1]

    yield start
    for generator in started:
        generator.stop()


def without_critic(folder: Path, name: str, url: str, model: Path, **sections: dict[str, Any]) -> Run:
    grouped = {"algorithm": {"advantage_estimator": "group_mean"}, "value_pretraining": {"num_trajectories": 0}}
    return Run(folder, name, url, model, **grouped, **sections)


def test_a_replay_goes_on_without_what_was_damaged_meanwhile(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    """One trajectory of a step, all of another: neither ends the learner, this time or the next."""
    run = without_critic(tmp_path, "damaged", redis_server, model, learner={"checkpoint_every": 4})
    limit = [3]
    generate(run, lambda prompt: prompt.issue_version < limit[0])
    process = run.start()
    run.wait_for_step(process, 3)  # no checkpoint yet
    run.kill(process)
    store = run.store()
    claimed = store.claimed()
    lost = [*claimed[2], claimed[3][5]]
    for prompt_id in lost:
        assert damage_payload(store, prompt_id, flip_bit)
    process = run.start()
    deadline = time.monotonic() + 200
    while store.ledger().rejected < len(lost):
        assert process.poll() is None and time.monotonic() < deadline, run.tail()
        time.sleep(0.02)
    run.kill(process)  # somewhere after the rejections
    limit[0] = 99
    run.finish(run.start())

    ledger = store.ledger()
    assert (ledger.is_exact, ledger.outstanding, ledger.rejected) == (True, 0, len(lost))
    assert ledger.trained == check_trained_once(run.folder.trained_log, 0) == NUM_STEPS * BATCH - len(lost)
    trained = read_trained_log(run.folder.trained_log)
    assert trained[2]["prompt_ids"] == []
    assert trained[3]["prompt_ids"] == [prompt_id for prompt_id in claimed[3] if prompt_id not in lost]
    assert sorted(trained) == list(range(1, NUM_STEPS + 1))
    assert {event["prompt_id"] for event in run.events("trajectory_quarantined")} == set(lost)
    letters = {letter.detail.split(": ")[0] for letter in store.dead_letters()}
    assert letters == set(lost)
    assert not run.events("fatal")


POISONED = "rl-00000005-1"  # of step 2: a step has four groups of two


def start_poisoned(run: Run, how: str) -> int:
    """A life of the learner; its exit code."""
    program = Path(__file__).parent / "poisoned_learner.py"
    command = [sys.executable, str(program), how, POISONED, "--config", str(run.folder.config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with run.log.open("ab") as log:
        return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment, timeout=280).returncode


@pytest.mark.parametrize(
    ("how", "lives"),
    [
        ("raises", [EXIT_FAILURE, 0]),
        ("nan", [EXIT_FAILURE, 0]),
        ("kills", [-signal.SIGKILL, -signal.SIGKILL, -signal.SIGKILL, 0]),  # twice in the step, once alone
    ],
)
def test_a_trajectory_that_ends_the_learner_is_found_and_rejected(
    tmp_path: Path,
    redis_server: str,
    model: Path,
    generate: Callable[..., ScriptedGenerator],
    how: str,
    lives: list[int],
) -> None:
    run = without_critic(tmp_path, how, redis_server, model, rl={"num_steps": 3})
    generate(run)
    for code in lives:
        assert start_poisoned(run, how) == code, run.tail()
    ledger = run.store().ledger()
    assert (ledger.is_exact, ledger.outstanding, ledger.rejected) == (True, 0, 1)
    assert check_trained_once(run.folder.trained_log, 0) == ledger.trained == 3 * BATCH - 1
    (letter,) = run.store().dead_letters()
    assert (letter.reason, letter.detail.split(": ")[0]) == ("fails in training", POISONED)


def test_where_none_fails_alone_the_run_stops_by_name_and_goes_on_without_what_is_rejected(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    run = without_critic(tmp_path, "together", redis_server, model, rl={"num_steps": 3})
    generate(run)
    assert [start_poisoned(run, "together") for _ in range(2)] == [EXIT_FAILURE, EXIT_REFUSED]
    text = run.log.read_text()
    assert "step 2 failed 2 times in training (index out of range in self)" in text
    assert f"vcppo reject --run {run.folder.path} " in text and POISONED in text
    lines, were_open = reject(run.store(), [POISONED])
    assert were_open
    assert lines == [f"{POISONED}: was claimed, is rejected: step 2 is trained without it when the learner replays it"]
    assert start_poisoned(run, "together") == 0
    ledger = run.store().ledger()
    assert (ledger.is_exact, ledger.trained, ledger.rejected) == (True, 3 * BATCH - 1, 1)

"""The learner killed at every boundary of a step: the resumed run is the undisturbed one, weights and curve."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.faults.dying_learner import BOUNDARIES
from tests.integration.conftest import RedisServer
from tests.integration.learner.test_learner import BATCH, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from tests.paths import ROOT
from vcppo.common.records.trained_log import check_trained_once, read_trained_log, replays_differ
from vcppo.common.telemetry.metrics import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
CHECKPOINT_EVERY = 2
# Two steps a boundary: checkpoints are on even ones, so half of the deaths come between two checkpoints.
NUM_STEPS = 2 * len(BOUNDARIES) + 2
SETTINGS: dict[str, dict[str, Any]] = {
    "critic": {"init": "policy"},
    "value_pretraining": {"num_trajectories": 0},
    "rl": {"num_steps": NUM_STEPS, "batch_size": BATCH, "group_size": 2, "max_staleness": 0,
           "actor_learning_rate": 1e-3},
    "learner": {"checkpoint_every": CHECKPOINT_EVERY, "device": "cpu", "num_threads": 1,
                "batch_deadline_seconds": 60.0, "micro_batch_tokens": 128},
}  # fmt: skip


def start(run: Run, *dying: str) -> subprocess.Popen[bytes]:
    """The learner process, which dies where it is told to."""
    if not dying:
        return run.start()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(HERE / "dying_learner.py"), *dying, "--config", str(run.folder.config)]
    with run.log.open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def make_run(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Run]]:
    """A run with a generator that answers at once, the same for the same prompt."""
    folder = tmp_path_factory.mktemp("runs")
    make_tiny_model(folder / "model")
    generators: list[ScriptedGenerator] = []

    def make(name: str) -> Run:
        run = Run(folder, name, redis.url, folder / "model", **SETTINGS)
        generators.append(ScriptedGenerator(run.url, run.name, seed=len(generators)))
        generators[-1].start()
        return run

    yield make
    for generator in generators:
        generator.stop()


@pytest.fixture(scope="module")
def calm(make_run: Callable[[str], Run]) -> Run:
    run = make_run("calm")
    run.finish(start(run))
    return run


@pytest.fixture(scope="module")
def stormy(make_run: Callable[[str], Run]) -> Run:
    """Killed at one boundary after the other, each in a step of its own, then let finish."""
    run = make_run("stormy")
    for number, boundary in enumerate(BOUNDARIES):
        # Those between checkpoint and broadcast only exist on even steps; the others die on odd ones, uncommitted.
        step = 2 * number + (2 if boundary in ("staged", "published", "committed", "noted", "broadcast") else 1)
        code = start(run, boundary, str(step)).wait(200)
        assert code == -signal.SIGKILL, f"{boundary}: ended with {code}\n{run.tail()}"
        ledger = run.store().ledger()
        assert ledger.is_exact, f"{boundary}: {ledger}"
    run.finish(start(run))
    return run


def test_nothing_is_trained_twice_or_skipped(calm: Run, stormy: Run) -> None:
    for run in (calm, stormy):
        ledger = run.store().ledger()
        assert ledger.is_exact
        assert ledger.outstanding == 0
        assert ledger.trained == NUM_STEPS * BATCH
        assert check_trained_once(run.folder.trained_log, 0) == NUM_STEPS * BATCH
        assert replays_differ(run.folder.trained_log) == []
    assert len(stormy.events("step_replayed")) >= len(BOUNDARIES) // 2
    first, second = (read_trained_log(run.folder.trained_log) for run in (calm, stormy))
    assert {step: line["prompt_ids"] for step, line in first.items()} == {
        step: line["prompt_ids"] for step, line in second.items()
    }


def test_a_step_that_dies_in_its_broadcast_has_its_metrics(make_run: Callable[[str], Run]) -> None:
    """Step 1, which makes no checkpoint: what was measured of it is the first thing one wants to see."""
    run = make_run("unsent")
    assert start(run, "sending", "1").wait(200) == -signal.SIGKILL
    rows = [row for row in read_metrics(run.folder.metrics_file("learner")) if row.get("stage") == "rl"]
    assert [row["step"] for row in rows] == [1]
    assert rows[0]["reward/mean"] is not None and rows[0]["policy/loss"] is not None


def test_the_weights_are_those_of_the_undisturbed_run(calm: Run, stormy: Run) -> None:
    expected, found = (load_file(run.folder.export / "model.safetensors") for run in (calm, stormy))
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        np.testing.assert_allclose(found[name], weights, rtol=0, atol=1e-6, err_msg=name)


def test_the_training_curve_is_that_of_the_undisturbed_run(calm: Run, stormy: Run) -> None:
    """Every metric of every step, but for wall time and what the store held at that moment."""
    expected, found = (curve(run) for run in (calm, stormy))
    assert expected.keys() == found.keys() == set(range(1, NUM_STEPS + 1))
    names = {name for row in expected.values() for name in row}
    assert {"reward/mean", "policy/loss", "critic/loss", "explained_variance/token", "policy/entropy"} <= names
    for step, row in expected.items():
        assert row.keys() == found[step].keys()
        for name, value in row.items():
            assert found[step][name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True), f"step {step}: {name}"


def curve(run: Run) -> dict[int, dict[str, float]]:
    """step -> what the learner measured of it, lists entry by entry; of a step done again, the last."""
    passing = ("time", "stage", "step", "run_id", "service")
    found: dict[int, dict[str, float]] = {}
    for row in read_metrics(run.folder.metrics_file("learner")):
        measured: dict[str, float] = {}
        for name, value in row.items():
            if name in passing or name.startswith(("time/", "ledger/")) or "per_second" in name:
                continue
            for index, each in enumerate(value if isinstance(value, list) else [value]):
                measured[f"{name}/{index}" if isinstance(value, list) else name] = (
                    float("nan") if each is None else each
                )
        found[row["step"]] = measured
    return found

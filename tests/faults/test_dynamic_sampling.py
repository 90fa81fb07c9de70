"""A learner with dynamic sampling, killed around the rejection of groups and at boundaries of a step: it ends like one
that was not, and every group is trained once or left out once."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.dying_learner import OF_DYNAMIC_SAMPLING
from tests.faults.test_learner import curve, start
from tests.integration.conftest import RedisServer
from tests.integration.learner.test_learner import BATCH, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from vcppo.common.records.trained_log import check_trained_once, read_trained_log, replays_differ
from vcppo.common.store import facts
from vcppo.common.store.left_out import Account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS = 6
DEATHS = [("leaving_out", 1), ("left_out", 2), ("claimed", 3), ("published", 4), ("left_out", 5), ("logged", 5)]


@pytest.fixture
def runs(tmp_path: Path, redis_process: RedisServer) -> Iterator[tuple[Run, Run]]:
    """Groups of two, answered the same for the same prompt: about half of them have no signal."""
    make_tiny_model(tmp_path / "model")
    generators = []
    made = []
    for name in ("calm", "stormy"):
        run = Run(
            tmp_path, name, redis_process.url, tmp_path / "model",
            algorithm={"advantage_estimator": "group_mean"}, value_pretraining={"num_trajectories": 0},
            rl={"num_steps": NUM_STEPS, "dynamic_sampling": "rewards", "dynamic_sampling_max_batches": 8},
        )  # fmt: skip
        generators.append(ScriptedGenerator(run.url, run.name, seed=len(generators)))
        generators[-1].start()
        made.append(run)
    yield made[0], made[1]
    for generator in generators:
        generator.stop()


def test_every_group_is_trained_once_or_left_out_once_whenever_the_learner_dies(runs: tuple[Run, Run]) -> None:
    assert {boundary for boundary, _ in DEATHS} >= set(OF_DYNAMIC_SAMPLING)
    calm, stormy = runs
    calm.finish(start(calm))
    for boundary, step in DEATHS:
        code = start(stormy, boundary, str(step)).wait(200)
        assert code == -signal.SIGKILL, f"{boundary}: ended with {code}\n{stormy.tail()}"
        assert stormy.store().ledger().is_exact, boundary
    stormy.finish(start(stormy))

    for run in runs:
        ledger = run.store().ledger()
        assert (ledger.is_exact, ledger.outstanding, ledger.trained) == (True, 0, NUM_STEPS * BATCH)
        assert ledger.rejected == ledger.without_signal > 0
        assert ledger.issued == NUM_STEPS * BATCH + ledger.without_signal
        assert check_trained_once(run.folder.trained_log, 0) == NUM_STEPS * BATCH
        assert replays_differ(run.folder.trained_log) == []
        assert run.store().num_dead_letters() == 0
        assert Account.loads(facts.LEFT_OUT.read(run.store())).total.samples == ledger.without_signal
    expected, found = (
        {step: line["prompt_ids"] for step, line in read_trained_log(run.folder.trained_log).items()} for run in runs
    )
    assert found == expected
    drawn, again = curve(calm), curve(stormy)
    names = {name for name in drawn[1] if name.startswith("dynamic_sampling/")}
    assert len(names) == 9
    for step in range(1, NUM_STEPS + 1):
        assert {name: again[step][name] for name in names} == {name: drawn[step][name] for name in names}, step
        assert drawn[step]["dynamic_sampling/trained_without_signal"] == 0
    assert sum(row["dynamic_sampling/groups_left_out"] for row in drawn.values()) * 2 == calm.store().ledger().rejected

"""A learner with dynamic sampling, and one that draws by difficulty besides, killed around the rejection of groups and
at boundaries of a step: it ends like one that was not, and every group is trained once or left out once."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.dying_learner import OF_DYNAMIC_SAMPLING
from tests.faults.test_learner import curve, start
from tests.integration.conftest import RedisServer
from tests.integration.learner.test_learner import BATCH, Run
from tests.integration.rig.scripted import ScriptedGenerator, make_tiny_model
from vcppo.common.config import load_config
from vcppo.common.records.trained_log import check_trained_once, read_trained_log, replays_differ
from vcppo.common.store import facts
from vcppo.common.store.left_out import Account

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

NUM_STEPS = 6
DEATHS = [("leaving_out", 1), ("left_out", 2), ("claimed", 3), ("published", 4), ("left_out", 5), ("logged", 5)]


NUM_PROBLEMS = 20


def by_difficulty(folder: Path) -> dict[str, dict[str, Any]]:
    """Of a data set that is asked more than once."""
    rows = [{"question": f"{number}+{number}=", "answer": str(2 * number)} for number in range(10, 10 + NUM_PROBLEMS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "held_out.jsonl").write_text('{"question": "7*9=", "answer": "63"}\n')
    options = {
        "path": str(folder / "train.jsonl"), "held_out_path": str(folder / "held_out.jsonl"),
        "prompt_template": "{question}",
    }  # fmt: skip
    return {"task": {"name": "dataset", "options": options}, "rl": {"difficulty": {"enabled": True, "new_share": 0.5}}}


@pytest.fixture(params=["own_order", "by_difficulty"])
def runs(tmp_path: Path, redis_process: RedisServer, request: pytest.FixtureRequest) -> Iterator[tuple[Run, Run]]:
    """Groups of two, answered the same for the same prompt: about half of them have no signal."""
    make_tiny_model(tmp_path / "model")
    generators: list[ScriptedGenerator] = []
    made = []
    drawn = by_difficulty(tmp_path) if request.param == "by_difficulty" else {}
    for name in ("calm", "stormy"):
        run = Run(
            tmp_path, name, redis_process.url, tmp_path / "model",
            algorithm={"advantage_estimator": "group_mean"}, value_pretraining={"num_trajectories": 0},
            rl={"num_steps": NUM_STEPS, "dynamic_sampling": "rewards", "dynamic_sampling_max_batches": 8,
                **drawn.get("rl", {})},
            **({"task": drawn["task"]} if drawn else {}),
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
    if load_config(calm.folder.config).rl.difficulty.enabled:
        check_drawn(calm, stormy, drawn, again)
    assert sum(row["dynamic_sampling/groups_left_out"] for row in drawn.values()) * 2 == calm.store().ledger().rejected


def check_drawn(calm: Run, stormy: Run, *curves: dict[int, dict[str, float]]) -> None:
    """The same problems for the same groups, outcomes of the same steps, and more than one pool was drawn from."""
    asked: list[dict[int, tuple[int, str]]] = []
    for run in (calm, stormy):
        lines = [json.loads(line) for line in run.folder.difficulty.read_text().splitlines()]
        asked.append(
            {
                line["first_group"] + place: pair
                for line in lines
                if "version" in line
                for place, pair in enumerate(zip(line["problems"], line["pools"], strict=True))
            }
        )
        assert {line["step"] for line in lines if "step" in line} == set(range(1, NUM_STEPS + 1))
    assert asked[0] == asked[1]
    assert len({pool for _, pool in asked[0].values()}) > 1
    for step in range(1, NUM_STEPS + 1):
        first, second = ({name: row for name, row in each[step].items() if "difficulty/" in name} for each in curves)
        assert first.keys() == second.keys() and len(first) == 12
        assert [*first.values()] == pytest.approx([*second.values()], nan_ok=True), step
        assert sum(value for name, value in first.items() if "/problems/" in name) == NUM_PROBLEMS

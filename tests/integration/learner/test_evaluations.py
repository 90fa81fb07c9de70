"""Evaluations during training in a real learner (Redis, DeepSpeed), with a scripted generator."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file

from tests.integration.rig.learner_run import BATCH, NUM_STEPS, Run
from tests.integration.rig.scripted import ScriptedGenerator
from vcppo.common.evaluation.on_the_way import read_evaluations
from vcppo.common.records.trajectory import Prompt, Trajectory
from vcppo.common.telemetry.metrics import read_metrics

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]

EVAL = {"every": 2, "at_start": True, "num_problems_during_training": 6, "samples_per_problem": 2, "k": 2}
EVALUATED = [0, 2, 4, 6, NUM_STEPS]
PLAIN: dict[str, Any] = {
    "algorithm": {"advantage_estimator": "leave_one_out"},
    "value_pretraining": {"num_trajectories": 0},
}


def is_held(prompt: Prompt, version: int) -> bool:
    return prompt.purpose == "evaluation" and prompt.issue_version >= version


def rows_of(run: Run) -> list[dict[str, Any]]:
    timings = ("seconds", "stall_seconds")
    return [{k: v for k, v in row.items() if k not in timings} for row in read_evaluations(run.folder.evaluations)]


def weights_in(folder: Path) -> dict[str, Any]:
    return dict(load_file(folder / "model.safetensors"))


def are_same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.allclose(one[name], other[name], rtol=0, atol=1e-6) for name in one)


def test_killed_while_it_waits_for_one_it_ends_with_the_figures_of_an_undisturbed_run(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    calm = Run(tmp_path, "calm", redis_server, model, eval=EVAL, **PLAIN)
    generate(calm)
    calm_process = calm.start()
    stormy = Run(tmp_path, "stormy", redis_server, model, eval=EVAL, **PLAIN)
    from_version = [2]
    generate(stormy, lambda prompt: not is_held(prompt, from_version[0]), seed=1)
    process = stormy.start()
    stormy.wait_for_step(process, 3)  # trained, and not published while version 2 has answers to come
    time.sleep(1.0)
    assert process.poll() is None and [row["version"] for row in rows_of(stormy)] == [0]
    assert stormy.store().ledger().evaluated == 12
    stormy.kill(process)
    from_version[0] = 99
    stormy.finish(stormy.start())
    calm.finish(calm_process)

    for run in (calm, stormy):
        rows = rows_of(run)
        assert [row["version"] for row in rows] == EVALUATED
        assert all(row["versions_seen"] == [row["version"]] for row in rows)
        assert all((row["num_problems"], row["num_samples"], row["num_lost"]) == (6, 12, 0) for row in rows)
        ledger = run.store().ledger()
        assert ledger.is_exact and ledger.outstanding == 0
        assert (ledger.trained, ledger.evaluated) == (NUM_STEPS * BATCH, 12 * len(EVALUATED))
        assert run.store().num_dead_letters() == 0
    assert rows_of(calm) == rows_of(stormy)
    metrics = [row for row in read_metrics(calm.folder.metrics_file("learner")) if row.get("stage") == "evaluation"]
    assert [row["step"] for row in metrics] == EVALUATED
    assert all(row["eval/accuracy_low"] <= row["eval/accuracy"] <= row["eval/accuracy_high"] for row in metrics)
    assert all(row["eval/pass_at_k"] >= row["eval/accuracy"] for row in metrics)
    # The scripted answers depend on the seed alone: all versions are alike, and the first of them is the best.
    start = weights_in(model)
    for run in (calm, stormy):
        assert are_same(weights_in(run.folder.export), start) and are_same(
            weights_in(run.folder.exports / "best"), start
        )
        assert not are_same(weights_in(run.folder.exports / "last"), start)
        assert sorted(path.name for path in run.folder.exports.iterdir()) == ["best", "last"]
    assert are_same(weights_in(calm.folder.exports / "last"), weights_in(stormy.folder.exports / "last"))


def better_later(trajectory: Trajectory) -> Trajectory:
    """Held-out answers are right at version 4 only."""
    right = trajectory.issue_version == 4
    if not trajectory.group_id.startswith("eval"):
        return trajectory
    from dataclasses import replace

    return replace(trajectory, outcome="correct" if right else "wrong", reward=1.0 if right else -1.0)


def test_the_best_version_is_exported_its_checkpoint_stays_and_a_plateau_ends_the_run(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    settings = {
        "eval": {**EVAL, "patience": 2},
        "rl": {"num_steps": 40},
        "learner": {"export_every": 4, "checkpoint_every": 2, "keep_checkpoints": 1},
    }
    run = Run(tmp_path, "plateau", redis_server, model, **settings, **PLAIN)
    generate(run, change=better_later)
    run.finish(run.start())
    assert [row["version"] for row in rows_of(run)] == [0, 2, 4, 6, 8]  # 6 and 8 are no better than 4
    (best,) = run.events("policy_exported")[-1:]
    assert (best["policy_version"], best["last_version"]) == (4, 9)
    regular = sorted(path.name for path in run.folder.exports.glob("step-*"))
    assert regular == ["step-000004", "step-000008"]
    assert are_same(weights_in(run.folder.export), weights_in(run.folder.exports / "step-000004"))
    assert not are_same(weights_in(run.folder.export), weights_in(run.folder.exports / "last"))
    kept = sorted(path.name for path in run.folder.checkpoints.glob("step-*"))
    assert kept == ["step-000004", "step-000009"]
    ledger = run.store().ledger()
    assert ledger.is_exact and ledger.trained == 9 * BATCH
    run.finish(run.start())  # the same command again: there is nothing to do
    assert len(rows_of(run)) == 5


def test_asked_to_stop_it_gives_up_an_evaluation_and_goes_on_without_it(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    run = Run(tmp_path, "stopped", redis_server, model, eval=EVAL, **PLAIN)
    from_version = [2]
    generate(run, lambda prompt: not is_held(prompt, from_version[0]), may_be_late=True)
    process = run.start()
    run.wait_for_step(process, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(100) == 128 + signal.SIGTERM, run.tail()
    (abandoned,) = run.events("evaluation_abandoned")
    assert abandoned["policy_version"] == 2
    ledger = run.store().ledger()
    assert ledger.is_exact and not any(entry.group_id.startswith("eval") for entry in run.store().outstanding())
    from_version[0] = 99
    tree = yaml.safe_load(run.folder.config.read_text())
    tree["eval"]["num_problems_during_training"] = 4
    run.folder.config.write_text(yaml.safe_dump(tree))
    run.finish(run.start())
    assert [(row["version"], row["num_problems"]) for row in rows_of(run)] == [(0, 6), (4, 4), (6, 4), (NUM_STEPS, 4)]


def test_two_ranks_under_zero_3_evaluate_and_export_as_one_does(
    tmp_path: Path, redis_server: str, model: Path, generate: Callable[..., ScriptedGenerator]
) -> None:
    """The weights that are copied while training goes on are gathered from both."""
    sections: dict[str, Any] = {"eval": EVAL, "rl": {"num_steps": 4}, **PLAIN}
    run = Run(
        tmp_path, "two", redis_server, model, learner={"num_ranks": 2, "zero_stage": 3, "export_every": 2}, **sections
    )
    generate(run, change=better_later)
    run.finish(run.start(num_ranks=2))
    assert [(row["version"], row["pass_at_1"]) for row in rows_of(run)] == [(0, 0.0), (2, 0.0), (4, 1.0)]
    assert are_same(weights_in(run.folder.export), weights_in(run.folder.exports / "step-000004"))
    assert are_same(weights_in(run.folder.exports / "best"), weights_in(run.folder.export))
    assert not are_same(weights_in(run.folder.exports / "step-000002"), weights_in(run.folder.export))
    assert run.store().ledger().evaluated == 36

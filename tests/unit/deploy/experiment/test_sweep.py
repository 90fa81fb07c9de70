"""A sweep: every arm with the same values, the best one by other runs and another figure than what is reported."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.paths import ROOT
from tests.unit.deploy.experiment.test_experiment import Stages
from vcppo.common.errors import ConfigError
from vcppo.deploy.cli import main
from vcppo.deploy.experiment.chosen_values import make_choices, read_choices
from vcppo.deploy.experiment.suite import Suite, load_suite, plan_runs
from vcppo.deploy.run.sweep import CHOICES_FILE, best_value, hours_left, late_mean, variant_name

ARMS = ROOT / "deploy" / "configs" / "arms"
SWEEP = "sweep: {field: rl.actor_learning_rate, values: [1.0e-5, 3.0e-5], best_seeds: [2, 3, 4]}\n"


def write_suite(folder: Path, more: str = SWEEP) -> Path:
    path = folder / "suite.yaml"
    arms = f"arms:\n- {{config: {ARMS}/vc_ppo.yaml}}\n- {{config: {ARMS}/grpo_group_mean.yaml}}\n"
    path.write_text(f"name: s\nbase: {ARMS}/base.yaml\nfolder: {folder}\nseeds: [0, 1]\n{more}{arms}")
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    return load_suite(write_suite(tmp_path))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({1.0: [0.2, 0.4], 2.0: [0.5, 0.3]}, 2.0),
        ({1.0: [0.2, 0.6], 2.0: [0.4, 0.4]}, 1.0),  # of equals the smaller step
        ({1.0: [0.9, None], 2.0: [0.5, 0.3]}, None),
        ({1.0: [0.9, -math.inf], 2.0: [0.1, 0.1]}, 2.0),
        ({1.0: [-math.inf], 2.0: [-math.inf]}, None),
        ({1.0: [], 2.0: [0.1]}, None),
        ({}, None),
    ],
)
def test_the_best_value(scores: dict[float, list[float | None]], best: float | None) -> None:
    assert best_value(scores) == best


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_late_is_the_last_quarter(values: list[float]) -> None:
    found = late_mean(values)
    assert found is not None and min(values) - 1e-12 <= found <= max(values) + 1e-12
    assert late_mean([*[5.0] * 3 * len(values), *values]) == pytest.approx(math.fsum(values) / len(values))
    assert late_mean([]) is None


def test_hours() -> None:
    assert hours_left([10.0, 20.0], 8, 99.0) == 2.0
    assert hours_left([], 8, 30.0) == 4.0
    assert hours_left([], 8, None) is None


def test_every_arm_runs_with_every_value(suite: Suite) -> None:
    runs = plan_runs(suite)
    assert [(r.arm, r.value, r.seed) for r in runs] == [
        (arm, value, seed) for seed in (0, 1) for arm in ("vc_ppo", "grpo_group_mean") for value in (1e-5, 3e-5)
    ]
    assert all(r.config.rl.actor_learning_rate == r.value for r in runs)
    assert runs[1].config.run.name == "vc_ppo-3e-05-seed0" == f"{variant_name('vc_ppo', 3e-5)}-seed0"
    assert runs[0].critic == runs[1].critic, "value pretraining does not depend on the actor's step size"


def test_fresh_seeds_run_with_the_best_value_only(suite: Suite) -> None:
    runs = plan_runs(suite, best={"vc_ppo": 3e-5})
    assert [(r.arm, r.value, r.seed) for r in runs[8:]] == [("vc_ppo", 3e-5, seed) for seed in (2, 3, 4)]
    assert plan_runs(suite, seeds=[2]) == []


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (SWEEP.replace("[2, 3, 4]", "[1, 2]"), r"best_seeds = \[1, 2\]: with seed 1 a value is chosen"),
        (SWEEP.replace("[1.0e-5, 3.0e-5]", "[1.0e-5]"), "sweep.values"),
        (SWEEP.replace("rl.actor", "actor"), "sweep.field"),
        (SWEEP.replace("actor_l", "actor_l_l"), "did you mean rl.actor_learning_rate"),
        ("reference: vcppo\n", "reference = 'vcppo': is no arm of it"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, more: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        plan_runs(load_suite(write_suite(tmp_path, more)))


def test_a_suite_of_another_task_takes_none_of_the_bases_options(tmp_path: Path) -> None:
    more = "settings: {task: {name: hidden_choices, options: {num_kinds: 5}}}\n"
    (first, *_) = plan_runs(load_suite(write_suite(tmp_path, more)))
    assert first.config.task.options == first.cold_start.task.options == {"num_kinds": 5}
    same = plan_runs(load_suite(write_suite(tmp_path, "settings: {task: {options: {num_operations: 2}}}\n")))
    assert same[0].config.task.options == {"num_operations": 2, "max_multiplier": 4}


class Trained(Stages):
    """Stages whose runs write what a real one would: accuracy by arm, value and step."""

    LATE: ClassVar = {
        "vc_ppo-1e-05": 0.5,
        "vc_ppo-3e-05": 0.7,
        "grpo_group_mean-1e-05": 0.6,
        "grpo_group_mean-3e-05": 0.4,
    }

    def stage(self, stage: str):  # type: ignore[no-untyped-def]
        run_stage = super().stage(stage)

        def run(config, session):  # type: ignore[no-untyped-def]
            run_stage(config, session)
            if stage == "run_up":
                late = self.LATE[config.run.name.rpartition("-seed")[0]]
                rows = [
                    {"time": "2026-01-01T00:00:00Z", "stage": "rl", "step": step,
                     "reward/accuracy": late if step > 15 else 1 - late}
                    for step in range(1, 21)
                ]  # fmt: skip
                path = config.run.path / "metrics" / "learner.jsonl"
                path.parent.mkdir(exist_ok=True)
                path.write_text("".join(json.dumps(row) + "\n" for row in rows))

        return run


def test_the_command_chooses_and_runs_the_best_with_fresh_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stages, path = Trained(monkeypatch), str(write_suite(tmp_path))
    assert main(["experiment", path]) == 0
    ups = [name for stage, name in stages.calls if stage == "run_up"]
    assert len(ups) == len(set(ups)) == 8 + 6
    assert ups[8:] == [f"{arm}-seed{seed}" for seed in (2, 3, 4) for arm in ("vc_ppo-3e-05", "grpo_group_mean-1e-05")]
    written = json.loads((tmp_path / "s" / CHOICES_FILE).read_text())
    assert written["vc_ppo"]["scores"] == {"1e-05": [0.5, 0.5], "3e-05": [0.7, 0.7]}
    assert "vc_ppo: rl.actor_learning_rate = 3e-05 is best with seeds [0, 1]" in capsys.readouterr().out
    stages.calls = []
    assert main(["experiment", path]) == 0
    assert stages.calls == []


def test_what_is_chosen_stays(suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a value that failed is not chosen; nothing is while a run is left."""
    stages = Trained(monkeypatch)
    stages.fails = {"vc_ppo-3e-05-seed1"}
    path = str(write_suite(tmp_path))
    assert main(["experiment", path, "--arm", "vc_ppo", "--seed", "0"]) == 0
    assert read_choices(suite) == {}
    assert main(["experiment", path, "--arm", "vc_ppo"]) == 1
    assert read_choices(suite) == {"vc_ppo": 1e-5}
    stages.fails = set()
    assert main(["experiment", path, "--arm", "vc_ppo"]) == 0
    assert make_choices(suite, plan_runs(suite), ()) == {"vc_ppo": 1e-5}
    changed = load_suite(write_suite(tmp_path, SWEEP.replace("1.0e-5,", "2.0e-5,")))
    with pytest.raises(ConfigError, match="1e-05 was chosen for vc_ppo, and is none of the sweep's values now"):
        read_choices(changed)


def test_a_dry_run_says_how_many_and_how_long(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", str(write_suite(tmp_path, SWEEP + "minutes_per_run: 30\n")), "--dry-run"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert (
        "8 runs, 0 done, 6 more with fresh seeds once the best values are known. 14 are left: about 7.0 hours" in text
    )

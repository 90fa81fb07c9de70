"""Suites: what they name, what runs share, and that every suite of ours can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from tests.paths import ROOT
from vcppo.common.errors import ConfigError, VcppoError
from vcppo.common.evaluation.eval_samples import plan_key
from vcppo.common.evaluation.evaluation_inputs import asked, evaluation_inputs
from vcppo.deploy.cli import main
from vcppo.deploy.experiment import runner as runner_module
from vcppo.deploy.experiment.runner import Experiment, is_done
from vcppo.deploy.experiment.shared import adopt
from vcppo.deploy.experiment.suite import SUITES, Run, Suite, load_suite, plan_runs

ARMS = ROOT / "deploy" / "configs" / "arms"


def suite_file(folder: Path, arms: str, more: str = "") -> Path:
    path = folder / "suite.yaml"
    path.write_text(f"name: s\nbase: {ARMS}/base.yaml\nfolder: {folder}\nseeds: [0, 1]\n{more}arms:\n{arms}")
    return path


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    arms = "".join(f"- {{config: {ARMS}/{name}.yaml}}\n" for name in (
        "vc_ppo", "without_decoupled_gae", "value_pretraining_0.25", "grpo_group_mean"))  # fmt: skip
    return load_suite(suite_file(tmp_path, arms, "settings: {rl: {num_steps: 3}}\n"))


def by_name(runs: list[Run]) -> dict[str, Run]:
    return {run.config.run.name: run for run in runs}


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_our_suites_load(path: Path) -> None:
    suite = load_suite(path)
    runs = plan_runs(suite)
    assert len({run.config.run.name for run in runs}) == len(runs)
    budgets = {(r.config.rl.num_steps, r.config.rl.batch_size) for r in runs}
    assert len(budgets) == 1, "an arm has another budget than the rest"
    # The suite's header says so: it compares critics, step size and all.
    own_rate = {"vc_ppo_sees_log_probs": 5e-4, "vc_ppo_sees_log_probs_1_pass": 5e-4}
    rates_of_rest = {r.config.rl.critic_learning_rate for r in runs if r.arm not in own_rate}
    assert len(rates_of_rest) == 1, "a critic has another step size than the rest"
    assert all(r.config.rl.critic_learning_rate == own_rate[r.arm] for r in runs if r.arm in own_rate)
    for arm in suite.arms:
        rates = {run.config.rl.actor_learning_rate for run in runs if run.arm == arm.name}
        assert len(rates) == 1 if suite.sweep is None else rates == set(suite.sweep.values)


def test_the_published_suite_has_the_seeds_asked_for() -> None:
    suite = load_suite(Path("paper"))
    seeds = {arm.name: len(arm.seeds or suite.seeds) for arm in suite.arms}
    assert all(seeds[name] >= 3 for name in ("ppo", "vc_ppo", "grpo_group_mean"))
    assert min(seeds.values()) >= 2


def test_runs_are_arms_by_seeds_from_one_cold_start(suite: Suite, tmp_path: Path) -> None:
    runs = plan_runs(suite)
    assert [run.seed for run in runs] == [0] * 4 + [1] * 4
    assert {run.config.model.path for run in runs} == {
        str(tmp_path / "s" / f"cold_start-seed{seed}" / "cold_start") for seed in (0, 1)
    }
    assert all(run.config.rl.num_steps == 3 and run.config.run.seed == run.seed for run in runs)
    assert [run.config.run.name for run in plan_runs(suite, ["vc_ppo"], [1])] == ["vc_ppo-seed1"]


def test_one_cold_start_may_be_every_seeds(tmp_path: Path) -> None:
    arms = f"- {{config: {ARMS}/vc_ppo.yaml}}\n- {{config: {ARMS}/ppo.yaml, reward_model: {{rollouts: recorded}}}}\n"
    runs = plan_runs(load_suite(suite_file(tmp_path, arms, "cold_start_seed: 1\n")))
    assert [run.seed for run in runs] == [run.config.run.seed for run in runs] == [0, 0, 1, 1]
    assert {run.cold_start.run.name for run in runs} == {"cold_start-seed1"}
    assert {run.cold_start.run.seed for run in runs} == {1}
    assert {run.config.model.path for run in runs} == {str(tmp_path / "s" / "cold_start-seed1" / "cold_start")}
    models = [run.reward_model for run in runs if run.reward_model is not None]
    assert len({model.reward_model.rollouts for model in models}) == len({model.run.name for model in models}) == 2


def test_what_runs_share(suite: Suite) -> None:
    runs = by_name(plan_runs(suite))
    vc, coupled, fewer = (runs[f"{n}-seed0"] for n in ("vc_ppo", "without_decoupled_gae", "value_pretraining_0.25"))
    assert vc.critic == coupled.critic
    assert vc.recording == fewer.recording
    assert vc.critic != fewer.critic
    assert vc.recording != runs["vc_ppo-seed1"].recording
    assert not runs["grpo_group_mean-seed0"].pretrains


def pretrain(run: Run, *, passed: bool = True) -> None:
    folder = run.folder.value_pretraining
    (folder / "critic").mkdir(parents=True)
    (folder / "critic" / "config.json").write_text("{}")
    (folder / "trajectories.msgpack").write_bytes(b"recorded")
    (folder / "decision.json").write_text(json.dumps({"passed": passed}))


def test_adopting(suite: Suite) -> None:
    runs = by_name(plan_runs(suite))
    others = list(runs.values())
    assert adopt(runs["without_decoupled_gae-seed0"], others) is None
    pretrain(runs["vc_ppo-seed0"])
    assert adopt(runs["without_decoupled_gae-seed0"], others) == runs["vc_ppo-seed0"]
    assert adopt(runs["value_pretraining_0.25-seed0"], others) == runs["vc_ppo-seed0"]
    whole, part = (
        runs[f"{name}-seed0"].folder.value_pretraining for name in ("without_decoupled_gae", "value_pretraining_0.25")
    )
    assert {p.name for p in whole.iterdir()} == {"trajectories.msgpack", "critic", "decision.json", "adopted.json"}
    assert {p.name for p in part.iterdir()} == {"trajectories.msgpack", "adopted.json"}
    assert adopt(runs["vc_ppo-seed1"], others) is None
    assert adopt(runs["grpo_group_mean-seed0"], others) is None
    assert adopt(runs["value_pretraining_0.25-seed0"], others) is None, "what a run has it keeps"


def test_a_critic_that_failed_its_gate_is_not_passed_on(suite: Suite) -> None:
    runs = by_name(plan_runs(suite))
    pretrain(runs["vc_ppo-seed0"], passed=False)
    adopt(runs["without_decoupled_gae-seed0"], list(runs.values()))
    assert not (runs["without_decoupled_gae-seed0"].folder.value_pretraining / "decision.json").exists()


def test_a_place_holder_critic_is_refused(tmp_path: Path) -> None:
    suite = load_suite(suite_file(tmp_path, f"- {{config: {ARMS}/ppo.yaml}}\n"))
    with pytest.raises(ConfigError, match=r"arm ppo: critic\.init = runs/arms/reward_model is a place holder"):
        plan_runs(suite)
    given = load_suite(suite_file(tmp_path, f"- {{config: {ARMS}/ppo.yaml, reward_model: {{prefix_fraction: 0.0}}}}\n"))
    (first, _) = plan_runs(given)
    assert first.reward_model is not None
    assert first.config.critic.init == str(first.reward_model.run.path / "reward_model")
    assert first.reward_model.reward_model.prefix_fraction == 0.0


@pytest.mark.parametrize(
    ("arms", "text"),
    [
        ("- {config: nowhere.yaml}\n", "no such file"),
        (f"- {{config: {ARMS}/vc_ppo.yaml}}\n- {{config: {ARMS}/vc_ppo.yaml}}\n", "'vc_ppo' is there twice"),
        (f"- {{config: {ARMS}/vc_ppo.yaml, sedes: [1]}}\n", "sedes"),
        (f"- {{config: {ARMS}/vc_ppo.yaml, settings: {{rl: {{num_step: 1}}}}}}\n", "did you mean rl.num_steps"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, arms: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        plan_runs(load_suite(suite_file(tmp_path, arms)))


class Stages:
    """Stands in for the stages: what each was called for, and failures on demand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[str, str]] = []
        self.fails: set[str] = set()
        for name in ("run_sft", "run_up", "run_reward_model"):
            monkeypatch.setattr(runner_module, name, self.stage(name))
        monkeypatch.setattr(runner_module, "evaluate", self.evaluate)
        monkeypatch.setattr(runner_module, "is_trained", lambda run: (run.folder.path / "ledger.json").exists())

    def stage(self, stage: str):  # type: ignore[no-untyped-def]
        def run(config, session):  # type: ignore[no-untyped-def]
            self.calls.append((stage, config.run.name))
            if config.run.name in self.fails:
                raise VcppoError("the gate did not pass")
            if stage == "run_sft":
                (config.run.path / "cold_start").mkdir()
                (config.run.path / "cold_start" / "config.json").write_text("{}")
            else:
                (config.run.path / "ledger.json").write_text("{}")
                (config.run.path / "export").mkdir()
                (config.run.path / "export" / "config.json").write_text("{}")

        return run

    def evaluate(self, config, models, sink, tick):  # type: ignore[no-untyped-def]
        self.calls += [("evaluate", config.run.name)]
        for name, model in models.items():
            of = {"inputs": plan_key(evaluation_inputs(config, str(model))), "asked": asked(config)}
            result = {"pass_at_1": 0.5, "num_problems": 10, "mean_length": 3.0, **of}
            (config.run.path / "eval" / f"{name}.json").write_text(json.dumps(result))


def test_finished_runs_are_skipped_and_failures_passed_by(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, runs = Stages(monkeypatch), plan_runs(suite, seeds=[0])
    stages.fails = {"without_decoupled_gae-seed0"}
    tally = Experiment(suite, runs, runs, Console(quiet=True)).work()
    assert tally.failed == {"without_decoupled_gae-seed0": "the gate did not pass"}
    assert stages.calls[0] == ("run_sft", "cold_start-seed0")
    assert [name for stage, name in stages.calls if stage == "run_up"] == [run.config.run.name for run in runs]
    assert [is_done(run) for run in runs] == [True, False, True, True]
    stages.calls, stages.fails = [], set()
    tally = Experiment(suite, runs, runs, Console(quiet=True)).work()
    assert stages.calls == [(stage, "without_decoupled_gae-seed0") for stage in ("run_up", "evaluate")]
    assert len(tally.done) == 4


def test_an_evaluation_of_other_settings_is_made_again_and_nothing_else(
    suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result was taken because a file of its name was there."""
    stages, runs = Stages(monkeypatch), plan_runs(suite, ["vc_ppo"], [0])
    Experiment(suite, runs, runs, Console(quiet=True)).work()
    stages.calls = []
    more = plan_runs(suite, ["vc_ppo"], [0], [f"eval.num_problems={runs[0].config.eval.num_problems + 1}"])
    tally = Experiment(suite, more, more, Console(quiet=True)).work()
    assert tally.failed == {} and all(is_done(run) for run in more)
    assert stages.calls == [("evaluate", "cold_start-seed0"), ("evaluate", "vc_ppo-seed0")]


def test_time_is_up(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, runs = Stages(monkeypatch), plan_runs(suite, seeds=[0])
    tally = Experiment(suite, runs, runs, Console(quiet=True), minutes=-1).work()
    assert tally.left == [run.config.run.name for run in runs]
    assert stages.calls == []


def test_other_settings_in_the_same_folder_are_refused(suite: Suite, monkeypatch: pytest.MonkeyPatch) -> None:
    Stages(monkeypatch)
    runs = plan_runs(suite, ["vc_ppo"], [0])
    Experiment(suite, runs, runs, Console(quiet=True)).work()
    other = plan_runs(suite, ["vc_ppo"], [0], ["rl.batch_size=64"])
    tally = Experiment(suite, other, other, Console(quiet=True)).work()
    assert "rl.batch_size is 128 in the run and 64 now" in tally.failed["vc_ppo-seed0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [("value_pretraining.held_out_fraction=0.2", None), ("rl.batch_size=64", None),
     ("model.dtype=bfloat16", "cold_start-seed0 was made with other settings: model.dtype is 'float32' in the run"),
     ("task.options.num_operations=5", "cold_start-seed0 was made with other settings: task.options.num_operations")],
)  # fmt: skip
def test_a_run_whose_gate_failed_goes_on_as_the_gate_said(
    suite: Suite, monkeypatch: pytest.MonkeyPatch, change: str, said: str | None
) -> None:
    """Its remedy is a setting and the same command. The cold start is made without that setting, and stands."""
    stages, runs = Stages(monkeypatch), plan_runs(suite, ["vc_ppo"], [0])
    stages.fails = {"vc_ppo-seed0"}
    Experiment(suite, runs, runs, Console(quiet=True)).work()
    stages.calls, stages.fails = [], set()
    more = plan_runs(suite, ["vc_ppo"], [0], [change])
    tally = Experiment(suite, more, more, Console(quiet=True)).work()
    if said is None:
        assert tally.failed == {} and [stage for stage, _ in stages.calls] == ["run_up", "evaluate"]
    else:
        assert said in tally.failed["vc_ppo-seed0"] and not stages.calls


def test_a_dry_run_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["experiment", "quick", "--dry-run", "--folder", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "vc_ppo-seed0" in out
    assert "ppo_rm_complete_beats_prefix-seed0" in out
    assert list(tmp_path.iterdir()) == []

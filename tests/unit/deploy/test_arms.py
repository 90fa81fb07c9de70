"""The paper's arms as configs: each loads, and differs from the base in nothing but what it is named for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.errors import ConfigError
from vcppo.deploy.run.run_config import changes

ARMS = ROOT / "deploy" / "configs" / "arms"
NO_PRETRAINING = {"value_pretraining.num_trajectories": 0}
FROM_POLICY = {"critic.init": "policy", **NO_PRETRAINING}


def pretraining(steps: int) -> dict[str, object]:
    # The full number of steps is the base's own.
    cap = {} if steps == 40 else {"value_pretraining.max_steps": steps}
    return {**cap, "value_pretraining.patience": 1000, "value_pretraining.min_explained_variance": -10.0}


DIFFERS_IN: dict[str, dict[str, object]] = {
    "vc_ppo": {},
    "ppo": {"algorithm.lambda_critic": 0.95, "critic.init": "runs/arms/reward_model", **NO_PRETRAINING},
    "ppo_policy_critic": {"algorithm.lambda_critic": 0.95, **FROM_POLICY},
    "without_decoupled_gae": {"algorithm.lambda_critic": 0.95},
    "without_value_pretraining": FROM_POLICY,
    "grpo_group_mean": {"algorithm.advantage_estimator": "group_mean", **FROM_POLICY},
    "grpo_dynamic_sampling": {
        "algorithm.advantage_estimator": "group_mean",
        "rl.dynamic_sampling": "rewards",
        **FROM_POLICY,
    },
    "grpo_leave_one_out": {"algorithm.advantage_estimator": "leave_one_out", **FROM_POLICY},
    "lambda_actor_0.90": {"algorithm.lambda_actor": 0.9},
    "lambda_actor_0.95": {},
    "lambda_actor_0.99": {"algorithm.lambda_actor": 0.99},
    "lambda_actor_1.00": {"algorithm.lambda_actor": 1.0},
    "value_pretraining_0.25": pretraining(10),
    "value_pretraining_0.50": pretraining(20),
    "value_pretraining_1.00": pretraining(40),
    "value_pretraining_1.50": pretraining(60),
    "length_adaptive": {"algorithm.length_adaptive_alpha": 0.05},
    "vc_ppo_4_passes": {"critic.passes": 4},
    "vc_ppo_auto_passes": {"critic.passes": "auto"},
    "vc_ppo_sees_log_probs": {
        "critic.passes": 4,
        "critic.sees_log_probs": True,
        "rl.critic_learning_rate": 5e-4,
    },
    "vc_ppo_sees_log_probs_1_pass": {"critic.sees_log_probs": True, "rl.critic_learning_rate": 5e-4},
    "vapo": {
        "algorithm.length_adaptive_alpha": 0.05,
        "algorithm.clip_high": 0.28,
        "algorithm.positive_nll_coefficient": 0.1,
    },
    "sao": {
        "rl.group_size": 1,
        "rl.critic_freeze": ["self_attn"],
        "critic.passes": 2,
        "algorithm.length_adaptive_alpha": 1.5,
        "algorithm.objective": "dis",
        "algorithm.old_log_probs": "behaviour",
        "algorithm.importance_truncation": None,
        "algorithm.clip_low": 0.3,
        "algorithm.clip_high": 5.0,
    },
}


def test_there_are_no_other_arms() -> None:
    assert {path.stem for path in ARMS.glob("*.yaml")} == {"base", *DIFFERS_IN}


@pytest.mark.parametrize("arm", DIFFERS_IN)
def test_an_arm_differs_in_what_it_names_only(arm: str) -> None:
    base, config = load_config(ARMS / "base.yaml"), load_config(ARMS / f"{arm}.yaml")
    found = {change.field: change.now for change in changes(base, config)}
    assert found == {"run.name": arm, **DIFFERS_IN[arm]}


def test_the_base_is_the_demo_but_for_its_folders() -> None:
    demo = load_config(ARMS.parent / "demo.yaml")
    fields = {change.field for change in changes(demo, load_config(ARMS / "base.yaml"))}
    assert fields == {"run.name", "model.path", "sft.output", "eval.every", "eval.at_start"}


class TestExtends:
    def write(self, folder: Path, **files: str) -> Path:
        for name, text in files.items():
            (folder / f"{name}.yaml").write_text(text)
        return folder / f"{next(iter(files))}.yaml"

    def test_fields_are_laid_over_and_lists_replaced_through_several_files(self, tmp_path: Path) -> None:
        path = self.write(
            tmp_path,
            a="extends: b.yaml\nrl: {num_steps: 3}\ntask: {options: {x: 1}}\nsft: {phases: [{steps: 1}]}",
            b="extends: c.yaml\nrl: {batch_size: 16, num_steps: 2}",
            c="model: {path: m}\nrl: {num_steps: 1, group_size: 4}\ntask: {options: {x: 0, y: 2}}\n"
            "sft: {init: m, phases: [{steps: 5}, {steps: 6}]}",
        )
        config = load_config(path, ["rl.group_size=2"])
        assert (config.rl.num_steps, config.rl.batch_size, config.rl.group_size) == (3, 16, 2)
        assert config.task.options == {"x": 1, "y": 2}
        assert [phase.steps for phase in config.sft.phases] == [1]
        assert config.model.path == "m"

    @pytest.mark.parametrize(
        ("files", "says"),
        [
            ({"a": "extends: b.yaml"}, "b.yaml: there is no such file"),
            ({"a": "extends: a.yaml"}, "a.yaml: extends = 'a.yaml': the files extend each other in a circle"),
            (
                {"a": "extends: b.yaml", "b": "extends: a.yaml"},
                "b.yaml: extends = 'a.yaml': the files extend each other",
            ),
            ({"a": "extends: [b.yaml]"}, "a.yaml: extends = .'b.yaml'.: must be the path of one YAML file"),
            ({"a": "extends: null"}, "a.yaml: extends = null: must be the path"),
            ({"a": "extends: b.yaml", "b": "- 1"}, "b.yaml: holds a list"),
        ],
    )
    def test_what_can_not_be_extended_is_one_line(self, tmp_path: Path, files: dict[str, str], says: str) -> None:
        with pytest.raises(ConfigError, match=says) as raised:
            load_config(self.write(tmp_path, **files))
        assert len(str(raised.value).splitlines()) == 1

"""Adapters belong to one base: which, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED
from vcppo.learner.critic_model.critic_engine import make_critic
from vcppo.learner.models.adapters import save_adapter
from vcppo.learner.models.base_model import OtherBase, base_models, check_base_models, write_base_models
from vcppo.learner.models.value_head import HeadRefused


def config(folder: Path, rank: int | None = 4, **sections: Any) -> VcppoConfig:
    tree = {"model": {"path": str(folder), "dtype": "float32"}, "lora": {"rank": rank}, **sections}
    return VcppoConfig.model_validate(tree)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_policy(tmp_path / "policy")


def test_a_base_that_was_moved_is_the_same_and_another_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "step-000001"
    checkpoint.mkdir()
    write_base_models(checkpoint, base_models(config(folder)))
    assert json.loads((checkpoint / "base_models.json").read_text()).keys() == {"actor", "critic"}
    check_base_models(checkpoint, config(folder))
    moved = shutil.copytree(folder, tmp_path / "moved")
    check_base_models(checkpoint, config(moved))
    other = save_tiny_policy(tmp_path / "other", seed=1)
    with pytest.raises(OtherBase, match=rf"actor belong to the model that was at {folder}.*{other}") as refused:
        check_base_models(checkpoint, config(other))
    assert refused.value.exit_code == EXIT_REFUSED
    with pytest.raises(OtherBase, match="of the critic belong"):
        check_base_models(checkpoint, config(folder, critic={"model": str(other)}))
    check_base_models(checkpoint, config(folder, critic={"model": str(other)}), "actor")


def test_adapters_and_full_training_do_not_go_on_with_each_other(folder: Path, tmp_path: Path) -> None:
    with_base, without = tmp_path / "with", tmp_path / "without"
    for each in (with_base, without):
        each.mkdir()
    write_base_models(with_base, base_models(config(folder)))
    write_base_models(without, base_models(config(folder, rank=None)))
    check_base_models(without, config(folder, rank=None))
    with pytest.raises(OtherBase, match=r"adapters only, and lora\.rank is null"):
        check_base_models(with_base, config(folder, rank=None))
    with pytest.raises(OtherBase, match=r"without adapters: set lora\.rank = null"):
        check_base_models(without, config(folder))


def saved_critic(folder: Path, target: Path, **of_critic: Any) -> Path:
    """As value pretraining leaves it."""
    made = config(folder, critic=of_critic)
    critic = make_critic(made, "policy")
    critic.hf_model.config.save_pretrained(str(target))
    save_adapter(critic.hf_model, target, str(folder))
    write_base_models(target, {"critic": base_models(made)["critic"]})
    return target


def test_a_critic_starts_from_adapters_of_its_base_only(folder: Path, tmp_path: Path) -> None:
    kept = saved_critic(folder, tmp_path / "critic", sees_log_probs=True)
    critic = make_critic(config(folder, critic={"sees_log_probs": True}), str(kept))
    assert critic.hf_model.score.weight.requires_grad
    with pytest.raises(HeadRefused, match=r"critic\.head"):
        make_critic(config(folder, critic={"sees_log_probs": True, "head": "two_hot"}), str(kept))
    with pytest.raises(OtherBase, match="of the critic belong"):
        make_critic(config(save_tiny_policy(tmp_path / "other", seed=1), critic={"sees_log_probs": True}), str(kept))
    with pytest.raises(OtherBase, match=r"lora\.rank is null"):
        make_critic(config(folder, rank=None, critic={"sees_log_probs": True}), str(kept))

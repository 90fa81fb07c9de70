"""The reward model: it learns to rank, is written as a critic can start from it, and is not made twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.rig.tiny import tiny_run
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import VcppoError
from vcppo.learner.cold_start.reward_model import MARKER, reward_model
from vcppo.learner.cold_start.sft import cold_start
from vcppo.learner.models.models import load_critic


@pytest.fixture
def config(tmp_path: Path) -> VcppoConfig:
    path = tmp_path / "config.yaml"
    tree = tiny_run(tmp_path, "rm-test")
    tree["reward_model"] = {"prefix_fraction": 1.0, "steps": 40, "batch_size": 16, "learning_rate": 5e-3}
    path.write_text(yaml.safe_dump(tree))
    return load_config(path)


def test_longer_parts_come_to_score_higher_and_a_critic_starts_from_it(config: VcppoConfig) -> None:
    cold_start(config)
    folder = reward_model(config)
    found = json.loads((folder / MARKER).read_text())
    assert found["accuracy"] > 0.8, "prefix pairs are easy: position tells"
    critic = load_critic(config.model.path, init=str(folder), dtype=torch.float32)
    assert critic.hf_model.score.weight.abs().sum() > 0
    written = (folder / "model.safetensors").stat().st_mtime_ns
    assert reward_model(config) == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    (folder / MARKER).unlink()
    with pytest.raises(VcppoError, match="not a reward model of ours"):
        reward_model(config)

"""A critic of another model: of any size, with the same vocabulary, refused otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.unit.rig.check_model import VOCABULARY, save_model
from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.critic_model.critic_engine import make_critic
from vcppo.learner.critic_model.critic_vocabulary import VocabularyDiffers, usable_vocabulary
from vcppo.learner.models.models import save_model as save_critic
from vcppo.learner.value_pretraining.recorded_with import critic_inputs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("policy") / "model")


def config_of(folder: Path, **critic: object) -> VcppoConfig:
    return VcppoConfig.model_validate({"model": {"path": str(folder), "dtype": "float32"}, "critic": critic})


def test_a_wider_and_deeper_critic(folder: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", hidden_size=96, num_hidden_layers=3, num_attention_heads=3)
    config = config_of(folder, model=str(other))
    assert usable_vocabulary(config) == VOCABULARY
    critic = make_critic(config, "policy")
    assert critic.hf_model.config.hidden_size == 96
    out = critic(build_packed(mixed_batch()))
    assert not out.values.any()
    out.values.sum().backward()
    assert critic.hf_model.score.weight.grad.abs().max() > 0
    save_critic(critic, tmp_path / "critic")
    again = make_critic(config, str(tmp_path / "critic"))  # as RL takes it from value pretraining
    assert all(torch.equal(a, b) for a, b in zip(critic.parameters(), again.parameters(), strict=True))


def test_padded_embeddings_leave_the_numbers_that_both_have(folder: Path, tmp_path: Path) -> None:
    padded = save_model(tmp_path / "padded", vocab_size=VOCABULARY + 64)
    assert usable_vocabulary(config_of(folder, model=str(padded))) == VOCABULARY
    assert usable_vocabulary(config_of(padded, model=str(folder))) == VOCABULARY
    short = save_model(tmp_path / "short", vocab_size=VOCABULARY - 3)
    with pytest.raises(VocabularyDiffers, match=rf"tokens up to {VOCABULARY - 1}, and the model embeddings of"):
        usable_vocabulary(config_of(folder, model=str(short)))


def swap_two_tokens(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tree["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (folder / "tokenizer.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("setting", ["model", "init"])
def test_another_vocabulary_is_refused_with_its_first_difference(folder: Path, tmp_path: Path, setting: str) -> None:
    other = save_model(tmp_path / "other")
    swap_two_tokens(other)
    with pytest.raises(
        VocabularyDiffers, match=rf"critic\.{setting} = .*: token \d+ is 'A' of the policy and 'B'"
    ) as no:
        usable_vocabulary(config_of(folder, **{setting: str(other)}))
    assert no.value.exit_code == EXIT_REFUSED


def test_a_critic_of_ours_has_no_tokenizer_and_is_known_by_its_size(folder: Path, tmp_path: Path) -> None:
    save_critic(make_critic(config_of(folder), "policy"), tmp_path / "critic")
    assert usable_vocabulary(config_of(folder, init=str(tmp_path / "critic"))) == VOCABULARY
    wide = save_model(tmp_path / "wide", vocab_size=VOCABULARY + 8)
    save_critic(make_critic(config_of(wide), "policy"), tmp_path / "of_wide")
    with pytest.raises(VocabularyDiffers, match=r"has no tokenizer\.json to compare"):
        usable_vocabulary(config_of(folder, init=str(tmp_path / "of_wide")))


def test_without_a_model_of_its_own_nothing_is_compared(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(folder, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    assert usable_vocabulary(config_of(bare)) == VOCABULARY


def test_a_critic_of_other_files_is_another_critic(folder: Path, tmp_path: Path) -> None:
    note = dict.fromkeys(["settings", "model", "task_code", "problems"], "same")
    other = save_model(tmp_path / "other", hidden_size=128)
    moved = tmp_path / "moved"
    shutil.copytree(other, moved)
    inputs = [critic_inputs(config_of(folder, model=path), note) for path in (None, str(other), str(moved))]
    assert inputs[0] != inputs[1] == inputs[2]


def test_what_is_frozen_in_rl_only_is_trained_in_value_pretraining(folder: Path) -> None:
    config = VcppoConfig.model_validate({
        "model": {"path": str(folder), "dtype": "float32"},
        "critic": {"freeze": ["embed_tokens"]},
        "rl": {"critic_freeze": ["self_attn"]},
    })  # fmt: skip
    for in_rl in (False, True):
        named = dict(make_critic(config, "policy", in_rl=in_rl).hf_model.named_parameters())
        assert {"self_attn" in name for name, each in named.items() if not each.requires_grad} == {False} | {in_rl}
        assert all(each.requires_grad != in_rl for name, each in named.items() if "self_attn" in name)
        assert any("mlp" in name and each.requires_grad for name, each in named.items())

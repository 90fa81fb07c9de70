"""What would make an export fail after the last step is mended or refused when the model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from tests.unit.common.model_folder.test_tokenizer import byte_level
from tests.unit.rig.architectures import save_tiny
from tests.unit.rig.learner_samples import mixed_batch
from vcppo.common.config import VcppoConfig
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.export import try_export
from vcppo.learner.models.models import load_critic, load_policy, save_model, vocabulary_size
from vcppo.learner.models.saving import NotSaveable
from vcppo.learner.packing_proof.proof import ModelRefused


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny("llama", tmp_path / "model", vocab_size=600)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"do_sample": True, "temperature": 0.9, "top_p": 0.6}),
        ({"do_sample": False, "top_k": 5}, {"do_sample": False, "top_k": None}),
        ({"do_sample": False, "temperature": 0.0}, {"do_sample": False, "temperature": None}),
        ({"do_sample": True, "early_stopping": True}, {"do_sample": True}),
        ({"temperature": -3.0}, {}),
        ({"pad_token_id": -1, "temperature": 0.5}, {}),
        ({"do_sample": True, "top_k": 5}, {"do_sample": True, "top_k": 5}),
    ],
)
def test_an_invalid_generation_config_is_mended(
    folder: Path, tmp_path: Path, given: dict[str, Any], expected: dict[str, Any]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5], **given}))
    save_model(load_policy(folder), tmp_path / "out")
    saved = GenerationConfig.from_pretrained(tmp_path / "out")
    assert saved.eos_token_id == [2, 5]
    assert {name: getattr(saved, name) for name in expected} == expected
    save_model(load_critic(folder), tmp_path / "critic")
    assert AutoConfig.from_pretrained(tmp_path / "critic").num_labels == 1


def test_a_generation_config_that_transformers_does_not_load_is_named(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"max_new_tokens": -1}')
    with pytest.raises(ModelRefused, match=r"generation_config\.json is not valid .*max_new_tokens.*: correct it"):
        load_policy(folder)


def test_generation_settings_in_config_json_do_not_stop_an_export(folder: Path, tmp_path: Path) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"temperature": 0.7, "max_length": 100}))
    save_model(load_policy(folder), tmp_path / "out")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_an_export_is_tried_whole(folder: Path, tmp_path: Path) -> None:
    byte_level().save_pretrained(folder)
    config = VcppoConfig.model_validate({"run": {"name": "x"}, "model": {"path": str(folder)}})
    policy = load_policy(folder, dtype=torch.bfloat16)
    try_export(policy, config, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").exists()
    policy.hf_model.save_pretrained = lambda *_, **__: None  # type: ignore[method-assign]
    with pytest.raises(NotSaveable, match="its export fails"):
        try_export(policy, config, tmp_path / "none")


# A model that brings its own code


CONFIGURATION = """
from transformers import LlamaConfig
class OwnConfig(LlamaConfig):
    model_type = "own"
"""
MODELING = """
from torch import nn
from transformers import LlamaForCausalLM, LlamaModel, LlamaPreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from .configuration_own import OwnConfig
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
class OwnForSequenceClassification(LlamaPreTrainedModel):
    config_class = OwnConfig
    def __init__(self, config):
        super().__init__(config)
        self.model = LlamaModel(config)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()
    def forward(self, input_ids, **kwargs):
        hidden = self.model(input_ids, **kwargs).last_hidden_state
        return SequenceClassifierOutput(logits=self.score(hidden)[:, -1])
"""


@pytest.fixture
def own(folder: Path) -> Path:
    (folder / "configuration_own.py").write_text(CONFIGURATION)
    (folder / "modeling_own.py").write_text(MODELING)
    auto_map = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
        "AutoModelForSequenceClassification": "modeling_own.OwnForSequenceClassification",
    }
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"model_type": "own", "auto_map": auto_map}))
    return folder


def test_trust_remote_code_reaches_every_loader_and_the_code_is_exported(own: Path, tmp_path: Path) -> None:
    byte_level().save_pretrained(own)
    assert vocabulary_size(own, trust_remote_code=True) == 600
    policy, critic = (load(own, trust_remote_code=True) for load in (load_policy, load_critic))
    assert type(policy.hf_model).__name__ == "OwnForCausalLM"
    assert type(critic.hf_model).__name__ == "OwnForSequenceClassification"
    config = VcppoConfig.model_validate({"run": {"name": "x"}, "model": {"path": str(own), "trust_remote_code": True}})
    try_export(policy, config, tmp_path / "out")
    assert (tmp_path / "out" / "modeling_own.py").exists() and (tmp_path / "out" / "configuration_own.py").exists()
    again = load_policy(tmp_path / "out", trust_remote_code=True)
    packed = build_packed(mixed_batch())
    assert torch.equal(again(packed).log_probs, policy(packed).log_probs)
    save_model(critic, tmp_path / "critic")
    assert load_critic(own, init=str(tmp_path / "critic"), trust_remote_code=True)

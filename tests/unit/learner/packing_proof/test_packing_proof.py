"""What makes a model unfit for packed sequences is found when it is loaded, and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaForCausalLM

from tests.unit.rig.architectures import save_tiny, tiny_config, tiny_model
from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import POLICY, load_policy
from vcppo.learner.models.packing_check import check_packing
from vcppo.learner.packing_proof import proof as packing_proof
from vcppo.learner.packing_proof.packing_probe import probe
from vcppo.learner.packing_proof.proof import ModelRefused, prove
from vcppo.learner.packing_proof.tiny_instance import tiny_configs


def _with(folder: Path, **changes: Any) -> Path:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


def test_a_tiny_instance_has_every_kind_of_layer_and_small_windows() -> None:
    config = tiny_config(
        "gemma3_text", num_hidden_layers=12, hidden_size=512, head_dim=64, num_attention_heads=8, intermediate_size=1024
    )
    assert config.layer_types[5] == "full_attention"
    small = next(tiny_configs(config, POLICY.auto_class))
    assert (small.num_hidden_layers, small.layer_types) == (6, config.layer_types[:6])
    assert (small.hidden_size, small.head_dim, small.num_attention_heads, small.sliding_window) == (64, 8, 8, 8)
    assert config.hidden_size == 512, "the config given is left alone"


def test_proving_changes_nobody_elses_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert prove(POLICY, tiny_config("llama"), "x")
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("rope", "max_tokens", "reason"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, 64, "rope_type=dynamic"),
        ("longrope", None, "at most 32"),
        ("longrope", 64, "generator.max_model_len = 64"),
        ("longrope", 32, None),
        ({"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 32}, None, None),
    ],
)
def test_rotary_frequencies_that_depend_on_the_length(
    rope: Any, max_tokens: int | None, reason: str | None, tmp_path: Path
) -> None:
    if rope == "longrope":
        factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4}
        rope = {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 32, **factors}
        folder = save_tiny("phi3", tmp_path, rope_parameters=rope, original_max_position_embeddings=32)
    else:
        folder = save_tiny("llama", tmp_path, rope_parameters=rope)
    if reason is None:
        assert load_policy(folder, max_tokens=max_tokens)
        return
    with pytest.raises(ModelRefused, match=reason):
        load_policy(folder, max_tokens=max_tokens)


def test_an_output_multiplier_that_no_list_knows_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_tiny_policy(tmp_path)
    plain = nn.Linear.forward

    def doubled(self: nn.Linear, input: torch.Tensor) -> torch.Tensor:
        return plain(self, input) * (2 if self.weight.shape[0] == 32 == self.weight.shape[1] else 1)

    monkeypatch.setattr(nn.Linear, "forward", doubled)  # the head of a tiny Qwen2: 32 tokens, 32 wide
    with pytest.raises(ModelRefused, match="differ from transformers' own by"):
        load_policy(folder)


def test_a_layer_that_looks_at_the_token_before_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Token shift, as no architecture of transformers has it beside attention: nothing but the proof can know."""
    folder = save_tiny("llama", tmp_path)
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, x: plain(self, x + x.roll(1, dims=1)))
    with pytest.raises(ModelRefused, match=r"carries state .* in model\.layers\.0\.mlp \(LlamaMLP"):
        load_policy(folder)


def test_what_is_random_in_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    plain = LlamaMLP.forward
    monkeypatch.setattr(
        LlamaMLP,
        "forward",
        lambda self, x: plain(self, x + torch.randn_like(x) if self.training else x),
    )
    with pytest.raises(ModelRefused, match="random in training"):
        load_policy(save_tiny("llama", tmp_path))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("opt", {"dropout": 0.5, "attention_dropout": 0.5}),
        ("gpt2", {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}),
        ("mixtral", {"router_jitter_noise": 0.5}),
        ("phi", {"resid_pdrop": 0.5, "attention_dropout": 0.5}),
    ],
)
def test_every_dropout_is_off_in_training(name: str, changes: dict[str, float], tmp_path: Path) -> None:
    policy = load_policy(save_tiny(name, tmp_path, **changes)).train()
    packed = build_packed(mixed_batch())
    assert torch.equal(policy(packed).log_probs, policy(packed).log_probs)


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    folder = _with(save_tiny("llama", tmp_path), quantization_config={"quant_method": "fp8"})
    with pytest.raises(ModelRefused, match=r"quantised.*bfloat16 or float32 model it was made from"):
        load_policy(folder)


def test_gradient_checkpointing_that_a_model_lacks_is_a_setting_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LlamaForCausalLM, "supports_gradient_checkpointing", False)
    folder = save_tiny("llama", tmp_path)
    with pytest.raises(ModelRefused, match=r"learner\.gradient_checkpointing = false"):
        load_policy(folder, recomputed_every=1)


def test_without_a_tiny_instance_the_model_itself_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing_proof, "tiny_configs", lambda *_, **__: iter(()))
    assert load_policy(save_tiny("llama", tmp_path / "good"))
    with pytest.raises(ModelRefused, match="differs from the same sequence alone"):
        load_policy(save_tiny("qwen3_next", tmp_path / "bad"))


def test_the_probe_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    policy = load_policy(save_tiny("llama", tmp_path))
    probe(POLICY, policy, policy.hf_model, "x")
    assert policy.hf_model.training
    assert policy.hf_model.config._attn_implementation == "vcppo_packed"


def test_the_check_compares_the_whole_model_in_both_types(tmp_path: Path) -> None:
    from tests.unit.common.model_folder.test_tokenizer import byte_level

    folder = save_tiny("llama", tmp_path, vocab_size=600)
    byte_level().save_pretrained(folder)
    report = check_packing(str(folder))
    assert report.is_good
    seen = {(gap.dtype, gap.text, gap.against) for gap in report.gaps}
    assert seen == {
        (dtype, text, against)
        for dtype in ("bfloat16", "float32")
        for text in ("random", "real")
        for against in ("alone", "transformers")
    }
    assert all(gap.largest < 1e-3 for gap in report.gaps if gap.dtype == "float32")


def test_tiny_model_is_far_from_uniform() -> None:
    """Else every comparison above would be of noise."""
    model = tiny_model("llama").eval()
    with torch.no_grad():
        log_probs = model(torch.arange(3, 30)[None]).logits.log_softmax(-1)
    assert float(log_probs.std()) > 0.5

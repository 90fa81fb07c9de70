"""Adapters: one base in memory, merged weights that are what the adapters compute, folders that peft loads."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.rig.architectures import save_tiny
from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy
from vcppo.common.config import LoraConfig
from vcppo.common.errors import ConfigError
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.adapters import (
    AdapterRefused,
    add_adapters,
    load_adapter,
    save_adapter,
    share,
    without_adapters,
)
from vcppo.learner.models.merged_weights import adapted_layers, is_adapter, trained_with_adapters
from vcppo.learner.models.models import PolicyModel, critic_over, load_critic, load_policy, save_model
from vcppo.learner.models.wire_weights import WireWeights, own_weights

LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def adapted(policy: PolicyModel, config: LoraConfig = LORA) -> PolicyModel:
    model = share(policy.hf_model)
    add_adapters(model, config)
    return PolicyModel(model, chunk_tokens=4, chunk_vocab=12)


def give_values(model: nn.Module, size: float = 0.3) -> None:
    """As after training: B is not zero any more."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained_with_adapters(model).items():
            if ".lora_A." not in name:
                parameter.normal_(std=size, generator=generator)


def walked(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in WireWeights(model).walk(lambda _: nullcontext())}


def loaded_with(folder: Path, weights: dict[str, Tensor], dtype: torch.dtype) -> PolicyModel:
    """A policy as a generator would have it: the walk's weights under the checkpoint's names."""
    policy = load_policy(folder, dtype=dtype)
    own = own_weights(policy.hf_model)
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    return policy


@torch.no_grad()
def log_probs(policy: PolicyModel) -> Tensor:
    return policy(build_packed(mixed_batch()), 0.9).log_probs


def test_actor_critic_and_reference_have_one_base_in_memory(folder: Path) -> None:
    base = load_policy(folder)
    actor, reference = adapted(base), adapted(base)
    critic = critic_over(base, sees_log_probs=True)
    add_adapters(critic.hf_model, LORA)
    trees = [base, actor, reference, critic]
    shared = {id(parameter) for parameter in base.parameters()}
    distinct = {id(p): p for tree in trees for p in tree.parameters()}
    own = [p for tree in trees for p in trained_with_adapters(tree.hf_model).values()]
    assert sum(p.numel() for p in distinct.values()) == sum(p.numel() for p in [*base.parameters(), *own])
    for tree in trees:
        assert {id(p) for p in tree.parameters()} - {id(p) for p in own} <= shared
        assert {id(p) for p in tree.parameters() if p.requires_grad} <= {id(p) for p in own}
    one, others = actor.hf_model, (reference.hf_model, critic.hf_model)
    mine = {id(p) for p in trained_with_adapters(one).values()}
    assert all(mine.isdisjoint({id(p) for p in trained_with_adapters(each).values()}) for each in others)
    names = set(trained_with_adapters(critic.hf_model))
    assert {"score.weight", "surprise_input.weight"} < names and not any("lm_head" in name for name in names)


def test_a_critic_over_the_policys_base_computes_what_a_loaded_one_does(folder: Path) -> None:
    bins, packed = ValueBins(-1.0, 1.0, 21, 0.75), build_packed(mixed_batch())
    for kind in (None, bins):
        loaded = load_critic(folder, bins=kind, sees_log_probs=True)
        shared = critic_over(load_policy(folder), bins=kind, sees_log_probs=True)
        for critic in (loaded, shared):
            assert critic(packed).values.abs().max() < 1e-6  # the new head
            generator = torch.Generator().manual_seed(2)
            for weight in (critic.hf_model.score.weight, critic.hf_model.surprise_input.weight):
                torch.nn.init.normal_(weight, generator=generator)
        assert torch.equal(loaded(packed).logits, shared(packed).logits)
        assert loaded.hf_model.config.num_labels == shared.hf_model.config.num_labels == (21 if kind else 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_of_zero_change_nothing_to_the_bit(folder: Path, dtype: torch.dtype) -> None:
    base = load_policy(folder, dtype=dtype, chunk_tokens=4, chunk_vocab=12)
    before, expected = walked(base.hf_model), log_probs(base)
    actor = adapted(base)
    found = walked(actor.hf_model)
    assert list(found) == list(before)
    assert all(torch.equal(found[name], tensor) for name, tensor in before.items())
    assert torch.equal(log_probs(actor), expected)


@pytest.mark.parametrize("tied", [True, False])
def test_merged_weights_are_what_the_adapters_compute(tmp_path: Path, tied: bool) -> None:
    folder = save_tiny_policy(tmp_path, tied=tied)
    base = load_policy(folder)
    actor = adapted(base)
    give_values(actor.hf_model)
    merged = walked(actor.hf_model)
    unchanged = walked(base.hf_model)
    layers = set(adapted_layers(actor.hf_model))
    assert layers == {name for name in unchanged if name.endswith("_proj.weight")}
    assert {name for name, tensor in merged.items() if not torch.equal(tensor, unchanged[name])} == layers
    for name, layer in adapted_layers(actor.hf_model).items():
        a, b = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
        expected = unchanged[name].double() + 6.0 / 4 * b @ a
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-6, atol=1e-6)
    difference = log_probs(loaded_with(folder, merged, torch.float32)) - log_probs(actor)
    assert difference.abs().max() < 1e-4 < (log_probs(actor) - log_probs(base)).abs().max()


def test_in_bfloat16_small_changes_reach_the_merged_weights_on_average(folder: Path) -> None:
    """Each change is far below half a unit in the last place: rounding to the nearest would send the base, always."""
    base = load_policy(folder, dtype=torch.bfloat16)
    actor = adapted(base, LoraConfig(rank=4, alpha=4.0))
    layer = adapted_layers(actor.hf_model)["model.layers.0.mlp.up_proj.weight"]
    layer.base_layer.weight.data.fill_(1.0)  # a unit in the last place is 2^-7 above it
    layer.lora_A["default"].weight.data.fill_(1.0)
    layer.lora_B["default"].weight.data.fill_(2.0**-12)  # so W + B A = 1 + 2^-10, an eighth of a unit
    merged = walked(actor.hf_model)["model.layers.0.mlp.up_proj.weight"]
    assert merged.dtype == torch.bfloat16
    assert set(merged.unique().tolist()) == {1.0, 1.0 + 2.0**-7}
    share_up = (merged > 1).float().mean().item()
    assert abs(share_up - 1 / 8) < 4 * (1 / 8 * 7 / 8 / merged.numel()) ** 0.5
    assert torch.equal(merged, walked(actor.hf_model)["model.layers.0.mlp.up_proj.weight"])
    layer.lora_B["default"].weight.data.neg_()
    lower = walked(actor.hf_model)["model.layers.0.mlp.up_proj.weight"]
    assert set(lower.unique().tolist()) == {1.0 - 2.0**-8, 1.0}  # below 1 a unit is half as large
    layer.base_layer.weight.data.neg_()
    assert torch.equal(walked(actor.hf_model)["model.layers.0.mlp.up_proj.weight"] < 0, lower > 0)


def test_in_bfloat16_the_forward_does_not_lose_small_changes(folder: Path) -> None:
    """Each change is far below half a unit in the last place of the output: added to a rounded one, it would vanish."""
    actor = adapted(load_policy(folder, dtype=torch.bfloat16), LoraConfig(rank=4, alpha=4.0))
    layer = adapted_layers(actor.hf_model)["model.layers.0.mlp.up_proj.weight"]
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(4096, 32, generator=generator).to(torch.bfloat16)
    layer.base_layer.weight.data.normal_(std=3.0, generator=generator)  # outputs of about 17: a unit is 0.125
    layer.lora_A["default"].weight.data.normal_(std=0.01, generator=generator)
    layer.lora_B["default"].weight.data.normal_(std=0.05, generator=generator)
    a, b = (getattr(layer, side)["default"].weight.double() for side in ("lora_A", "lora_B"))
    with torch.no_grad():
        change = x.double() @ a.T @ b.T
        assert change.abs().max() < 0.125 / 2
        exact = x.double() @ layer.base_layer.weight.double().T
        arrives = [
            float(((forward(x).double() - exact) * change).sum() / (change * change).sum())
            for forward in (layer, lambda x: type(layer).forward(layer, x))
        ]
    assert abs(arrives[0] - 1) < 0.15 and arrives[1] < 0.7, "of the change, in our forward and in peft's"


def test_rounding_differently_reaches_layers_with_adapters(folder: Path) -> None:
    from vcppo.learner.models.rounding import BFLOAT16, rounded_differently

    base = load_policy(folder, chunk_tokens=4, chunk_vocab=12)
    actor = adapted(base)
    moved = []
    for policy in (base, actor):
        with rounded_differently(policy, BFLOAT16):
            disturbed = log_probs(policy)
        moved.append((disturbed - log_probs(policy)).abs().mean().item())
    assert 0.5 < moved[1] / moved[0] < 2


def test_in_bfloat16_merged_weights_agree_to_rounding(folder: Path) -> None:
    """As the canary judges it: the mean difference of log-probs against what rounding explains."""
    from vcppo.learner.models.rounding import last_place, rounded_differently

    base = load_policy(folder, dtype=torch.bfloat16)
    actor = adapted(base)
    give_values(actor.hf_model, 0.05)
    with rounded_differently(actor, last_place(("bfloat16",))):
        disturbed = log_probs(actor)
    explained = (disturbed - log_probs(actor)).abs().mean()
    generator = loaded_with(folder, walked(actor.hf_model), torch.bfloat16)
    difference = (log_probs(generator) - log_probs(actor)).abs().mean()
    moved = (log_probs(base) - log_probs(actor)).abs().mean()
    assert difference < 2 * explained and difference < moved / 4


def test_a_saved_policy_is_the_merged_one(folder: Path, tmp_path: Path) -> None:
    actor = adapted(load_policy(folder))
    give_values(actor.hf_model)
    state = walked(actor.hf_model) | {
        name: p.detach() for name, p in trained_with_adapters(actor.hf_model).items() if is_adapter(name)
    }
    save_model(actor, tmp_path / "export", state)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "export")
    assert own_weights(plain).keys() == own_weights(load_policy(folder).hf_model).keys()
    assert (log_probs(load_policy(tmp_path / "export")) - log_probs(actor)).abs().max() < 1e-4
    assert not adapted_layers(without_adapters(actor.hf_model)) and adapted_layers(actor.hf_model)


def test_peft_loads_the_adapter_folder(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    actor = adapted(load_policy(folder))
    give_values(actor.hf_model)
    save_adapter(actor.hf_model, tmp_path, str(folder))
    tokens = torch.tensor([[3, 4, 5, 6, 7, 8]])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tmp_path)
    assert loaded.peft_config["default"].base_model_name_or_path == str(folder)
    save_model(loaded_with(folder, walked(actor.hf_model), torch.float32), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        found, expected = loaded.eval()(tokens).logits, merged(tokens).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_peft_loads_the_critics_folder_with_its_head(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    critic = critic_over(load_policy(folder))
    add_adapters(critic.hf_model, LORA)
    give_values(critic.hf_model)
    save_adapter(critic.hf_model, tmp_path, str(folder))
    plain = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    loaded = PeftModel.from_pretrained(plain, tmp_path)
    batch = mixed_batch()
    tokens = [*batch[0].prompt_token_ids.tolist(), *batch[0].response_token_ids.tolist()]
    with torch.no_grad():
        hidden = loaded.base_model.model.model(input_ids=torch.tensor([tokens])).last_hidden_state
        expected = critic(build_packed(batch[:1])).last_values
        found = loaded.base_model.model.score(hidden)[0, -1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_adapters_come_back_from_their_folder_and_others_are_refused(folder: Path, tmp_path: Path) -> None:
    base = load_policy(folder)
    actor, again = adapted(base), adapted(base)
    give_values(actor.hf_model)
    save_adapter(actor.hf_model, tmp_path, str(folder))
    load_adapter(again.hf_model, tmp_path)
    assert torch.equal(log_probs(again), log_probs(actor))
    with pytest.raises(AdapterRefused, match=r"lora\.rank"):
        load_adapter(adapted(base, LoraConfig(rank=2)).hf_model, tmp_path)
    with pytest.raises(AdapterRefused, match=r"lora\.target_modules"):
        load_adapter(adapted(base, LoraConfig(rank=4, target_modules=["q_proj"])).hf_model, tmp_path)
    with pytest.raises(AdapterRefused, match="nowhere"):
        load_adapter(again.hf_model, tmp_path / "nowhere")


def test_target_modules_choose_layers_and_an_unknown_one_is_refused(folder: Path) -> None:
    base = load_policy(folder)
    some = adapted(base, LoraConfig(rank=2, target_modules=["q_proj", "down_proj"]))
    assert {name.split(".")[-2] for name in adapted_layers(some.hf_model)} == {"q_proj", "down_proj"}
    with pytest.raises(ConfigError, match=r"lora.target_modules = \['lm_head'\].*they are q_proj, k_proj"):
        adapted(base, LoraConfig(rank=2, target_modules=["lm_head"]))


def test_experts_keep_their_names_on_the_wire(tmp_path: Path) -> None:
    """transformers has fused them: they get no adapter, and attention does."""
    save_tiny("mixtral", tmp_path)
    base = load_policy(tmp_path)
    before = walked(base.hf_model)
    actor = adapted(base)
    give_values(actor.hf_model)
    after = walked(actor.hf_model)
    changed = {name.split(".")[-2] for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert list(after) == list(before) and changed == {"q_proj", "k_proj", "v_proj", "o_proj"}

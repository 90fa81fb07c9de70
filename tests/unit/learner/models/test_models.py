"""Loading, saving and refusing models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2ForSequenceClassification

from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy, tiny_config
from vcppo.common.errors import VcppoError
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import CriticModel, load_critic, load_policy, save_model


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("tied", [True, False])
def test_a_saved_policy_loads_in_transformers_with_the_same_logits(tmp_path: Path, tied: bool) -> None:
    policy = load_policy(save_tiny_policy(tmp_path / "in", tied=tied))
    state = {
        name.removeprefix("hf_model."): p.detach() for name, p in policy.named_parameters()
    }  # as the engine gathers
    assert ("lm_head.weight" in state) != tied
    save_model(policy, tmp_path / "out", state)
    tokens = torch.arange(10)[None]
    before = AutoModelForCausalLM.from_pretrained(tmp_path / "in")(tokens).logits
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "out")(tokens).logits
    assert torch.equal(before, after)
    assert all(name.startswith(("model.", "lm_head.")) for name in load_file(tmp_path / "out" / "model.safetensors"))
    modes = {file.stat().st_mode for file in (tmp_path / "out").iterdir()}
    assert len(modes) == 1, "whoever may read the config may read the weights"


def test_another_architecture_gives_its_own_log_probs(tmp_path: Path) -> None:
    torch.manual_seed(1)
    config = LlamaConfig(**{k: getattr(tiny_config(), k) for k in ("vocab_size", "hidden_size", "num_hidden_layers")})
    config.num_attention_heads, config.num_key_value_heads, config.intermediate_size = 4, 4, 48
    LlamaForCausalLM(config).float().save_pretrained(str(tmp_path))
    batch = mixed_batch()[:3]
    got = load_policy(tmp_path)(build_packed(batch), 0.9).log_probs
    plain, expected = AutoModelForCausalLM.from_pretrained(tmp_path).float(), []
    for t in batch:
        tokens = torch.tensor([[*t.prompt_token_ids.tolist(), *t.response_token_ids.tolist()]])
        log_softmax = torch.log_softmax(plain(tokens).logits[0] / 0.9, dim=1)
        first = len(t.prompt_token_ids)
        expected += [log_softmax[first + i - 1, tokens[0, first + i]] for i in t.action_mask.nonzero()[0].tolist()]
    torch.testing.assert_close(got, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_a_new_critic_says_zero_everywhere_and_its_head_learns(policy_folder: Path) -> None:
    critic = load_critic(policy_folder, init="policy")
    out = critic(build_packed(mixed_batch()))
    assert not out.values.any() and not out.last_values.any() and len(out.last_values) == 7
    (out.values - 1).square().sum().backward()
    assert critic.hf_model.score.weight.grad.abs().max() > 0


def test_a_critic_of_ours_and_a_reward_model_load_alike(tmp_path: Path, policy_folder: Path) -> None:
    torch.manual_seed(5)
    Qwen2ForSequenceClassification(tiny_config(num_labels=1)).float().save_pretrained(str(tmp_path / "reward_model"))
    critic = load_critic(policy_folder, init=str(tmp_path / "reward_model"))
    save_model(critic, tmp_path / "ours")
    again = load_critic(policy_folder, init=str(tmp_path / "ours"))
    packed = build_packed(mixed_batch())
    assert critic(packed).values.abs().max() > 0
    assert torch.equal(again(packed).values, critic(packed).values)


def test_values_are_float32_from_bfloat16_weights(policy_folder: Path) -> None:
    critic: CriticModel = load_critic(policy_folder, dtype=torch.bfloat16)
    assert next(critic.parameters()).dtype == torch.bfloat16
    assert critic(build_packed(mixed_batch()[:1])).values.dtype == torch.float32


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_recomputed_layers_change_no_gradient_and_keep_less(load, tmp_path: Path) -> None:
    """Of four layers: none, the first and the third, all."""
    folder, packed = save_tiny_policy(tmp_path, num_hidden_layers=4), build_packed(mixed_batch())
    gradients, kept = [], []
    for every in (0, 2, 1):
        model = load(folder, recomputed_every=every)
        layers = model.hf_model.get_decoder().layers if load is load_policy else model.hf_model.model.layers
        assert [layer.gradient_checkpointing for layer in layers] == [every and i % every == 0 for i in range(4)]
        own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        with saved_for_backward() as saved:
            output = model(packed)
        kept.append(sum(size for place, size in saved.items() if place not in own))
        (output.log_probs if load is load_policy else output.values).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for plain, *others in zip(*gradients, strict=True):
        for recomputed in others:
            assert (recomputed is None) == (plain is None)
            if plain is not None:
                torch.testing.assert_close(recomputed, plain)
    none, half, all_of_them = kept
    assert half == pytest.approx((none + all_of_them) / 2, rel=0.02)
    assert all_of_them < 0.4 * none


@contextmanager
def saved_for_backward() -> Iterator[dict[int, int]]:
    """Bytes by address of what autograd keeps meanwhile; what is to be recomputed is not in it."""
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


def test_dropout_in_the_config_is_off_in_training(tmp_path: Path) -> None:
    policy = load_policy(save_tiny_policy(tmp_path, attention_dropout=0.5)).train()
    packed = build_packed(mixed_batch())
    assert torch.equal(policy(packed).log_probs, policy(packed).log_probs)


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_an_unknown_path_is_one_clear_line(load, tmp_path: Path) -> None:
    with pytest.raises(VcppoError, match=r"no_such_model.*can't be loaded.*give a folder") as raised:
        load(tmp_path / "no_such_model")
    assert "\n" not in str(raised.value)


def test_a_model_without_a_value_head_is_no_critic(policy_folder: Path) -> None:
    with pytest.raises(VcppoError, match=r"no `score\.weight`.*critic\.init=policy"):
        load_critic(policy_folder, init=str(policy_folder))


def test_missing_weights_never_start_at_random(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path)
    tiny_config(num_hidden_layers=3).save_pretrained(str(folder))  # config.json asks for a layer the weights lack
    with pytest.raises(VcppoError, match=r"lacks 12 of its weights \(model\.layers\.2"):
        load_policy(folder)


def test_a_setting_that_bends_the_logits_is_refused(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path, final_logit_softcapping=30.0)
    with pytest.raises(VcppoError, match=r"final_logit_softcapping=30\.0"):
        load_policy(folder)

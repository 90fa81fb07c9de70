"""What a pattern freezes, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_USAGE, ConfigError
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.critic_model.critic_engine import make_critic
from vcppo.learner.models.freezing import freeze, num_trained_parameters
from vcppo.learner.models.models import load_policy


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_policy(tmp_path_factory.mktemp("policy"))


def frozen_names(module: torch.nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if not parameter.requires_grad}


def test_what_a_pattern_is_found_in_gets_no_gradient_and_the_rest_the_same(folder: Path) -> None:
    packed, gradients = build_packed(mixed_batch()), []
    for patterns in ([], [r"layers\.0\.", "^model.embed"]):
        policy = load_policy(folder)
        freeze(policy.hf_model, patterns, "rl.actor_freeze")
        policy(packed).log_probs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.hf_model.named_parameters()})
    every, some = gradients
    assert frozen_names(policy.hf_model) == {n for n in every if "layers.0." in n or n.startswith("model.embed")}
    for name, gradient in some.items():
        if name in frozen_names(policy.hf_model):
            assert gradient is None
        else:
            torch.testing.assert_close(gradient, every[name])


def test_a_tied_weight_has_both_of_its_names(folder: Path) -> None:
    policy = load_policy(folder)
    freeze(policy.hf_model, ["lm_head"], "rl.actor_freeze")
    assert frozen_names(policy.hf_model) == {"model.embed_tokens.weight"}
    trained, total = num_trained_parameters(policy.hf_model)
    assert total - trained == policy.hf_model.lm_head.weight.numel()


def test_only_the_last_layer_can_be_trained(folder: Path) -> None:
    policy = load_policy(save_tiny_policy(folder / "untied", tied=False))
    freeze(policy.hf_model, ["^model"], "rl.actor_freeze")
    policy(build_packed(mixed_batch())).log_probs.sum().backward()
    assert [n for n, p in policy.hf_model.named_parameters() if p.grad is not None] == ["lm_head.weight"]


def test_gradient_checkpointing_gives_the_same_gradients(folder: Path) -> None:
    packed, gradients = build_packed(mixed_batch()), []
    for checkpointing in (False, True):
        policy = load_policy(folder, recomputed_every=int(checkpointing))
        freeze(policy.hf_model, ["embed", r"layers\.0"], "rl.actor_freeze")
        policy(packed).log_probs.sum().backward()
        gradients.append({name: p.grad for name, p in policy.hf_model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_a_pattern_that_finds_nothing_is_refused_with_examples(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"rl\.actor_freeze: 'layer\.0' is found in no .*model\.embed_tokens\.weight"):
        freeze(load_policy(folder).hf_model, ["embed", "layer.0"], "rl.actor_freeze")


def test_patterns_that_leave_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"critic\.freeze .*leaves nothing to train") as refused:
        freeze(load_policy(folder).hf_model, ["model", "lm_head"], "critic.freeze")
    assert refused.value.exit_code == EXIT_USAGE


def config_of(folder: Path, **critic: object) -> VcppoConfig:
    return VcppoConfig.model_validate({"model": {"path": str(folder), "dtype": "float32"}, "critic": critic})


def test_a_new_head_cannot_be_frozen(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"finds score\.weight, a new value head"):
        make_critic(config_of(folder, freeze=["score"]), "policy")
    critic = make_critic(config_of(folder, freeze=["^model"]), "policy")
    critic(build_packed(mixed_batch())).values.sum().backward()
    assert [n for n, p in critic.hf_model.named_parameters() if p.grad is not None] == ["score.weight"]

"""Two optimizer steps of adapters against LoRA and Algorithm 1 written down plainly, in float64.

The reference shares nothing with the learner or peft: Hugging Face models whose weights are W + s B A by definition,
one unpadded sequence at a time (`test_step`), clipping and Adam as their papers have them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.learner.test_step import packed_gradients, plain_gradients, plain_log_probs
from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy
from vcppo.common.config import LoraConfig
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine
from vcppo.learner.models.adapters import add_adapters, share
from vcppo.learner.models.merged_weights import adapted_layers, trained_with_adapters
from vcppo.learner.models.models import PolicyModel, critic_over, load_policy

RANK, ALPHA = 4, 10.0
RATE, MAX_NORM, BETAS, EPSILON = 3e-3, 0.5, (0.9, 0.999), 1e-8
STEPS = 2


class LowRank(nn.Module):
    """W + (alpha / r) B A."""

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (ALPHA / RANK) * self.b @ self.a


class PlainAdam:
    """Kingma and Ba, algorithm 1, after clipping to the global norm."""

    def __init__(self, parameters: dict[str, Tensor]) -> None:
        self.parameters, self.steps = parameters, 0
        self.m = {name: torch.zeros_like(p) for name, p in parameters.items()}
        self.v = {name: torch.zeros_like(p) for name, p in parameters.items()}

    @torch.no_grad()
    def step(self) -> float:
        self.steps += 1
        norm = math.sqrt(sum(float((p.grad**2).sum()) for p in self.parameters.values()))
        for name, p in self.parameters.items():
            gradient = p.grad * min(1.0, MAX_NORM / norm)
            self.m[name] = BETAS[0] * self.m[name] + (1 - BETAS[0]) * gradient
            self.v[name] = BETAS[1] * self.v[name] + (1 - BETAS[1]) * gradient**2
            m = self.m[name] / (1 - BETAS[0] ** self.steps)
            v = self.v[name] / (1 - BETAS[1] ** self.steps)
            p -= RATE * m / (v.sqrt() + EPSILON)
            p.grad = None
        return norm


def plain_with_adapters(plain: nn.Module, ours: nn.Module) -> dict[str, Tensor]:
    """Give the transformers model the same A and B; what is trained, by our names."""
    plain.double().requires_grad_(requires_grad=False)
    trained: dict[str, Tensor] = {}
    for name, layer in adapted_layers(ours).items():
        path = name.removesuffix(".weight")
        a, b = (getattr(layer, side)["default"].weight.detach().double() for side in ("lora_A", "lora_B"))
        module = LowRank(a.clone(), b.clone())
        parametrize.register_parametrization(plain.get_submodule(path), "weight", module)
        trained |= {f"{path}.lora_A.default.weight": module.a, f"{path}.lora_B.default.weight": module.b}
    if hasattr(ours, "score"):
        with torch.no_grad():
            plain.score.weight.copy_(ours.score.weight)
        trained["score.weight"] = plain.score.weight.requires_grad_()
    assert trained.keys() == trained_with_adapters(ours).keys()
    return trained


def give_values(model: nn.Module) -> None:
    """In the middle of training: B = 0 would leave A without a gradient, and a head of zeros all below it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in trained_with_adapters(model).items():
            if ".lora_A." not in name:
                parameter.normal_(std=0.1, generator=generator)


@pytest.mark.parametrize("tied", [True, False])
def test_two_steps_of_adapters_are_those_of_lora_and_algorithm_1(tmp_path: Path, tied: bool) -> None:
    folder = save_tiny_policy(tmp_path, tied=tied)
    base = load_policy(folder, chunk_tokens=4, chunk_vocab=12)
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    actor_model = share(base.hf_model)
    critic_module = critic_over(base)
    for model in (actor_model, critic_module.hf_model):
        add_adapters(model, LoraConfig(rank=RANK, alpha=ALPHA))
        give_values(model)
    options = EngineOptions(max_grad_norm=MAX_NORM)
    actor = TrainEngine(PolicyModel(actor_model, chunk_tokens=4, chunk_vocab=12), learning_rate=RATE, options=options)
    critic = TrainEngine(critic_module, learning_rate=RATE, options=options)

    plain_policy = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    plain_critic = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, attn_implementation="eager")
    expected = [
        plain_with_adapters(plain_policy, actor_model),
        plain_with_adapters(plain_critic, critic_module.hf_model),
    ]
    start = [{name: each.detach().clone() for name, each in side.items()} for side in expected]
    optimizers = [PlainAdam(side) for side in expected]

    for seed in range(STEPS):
        batch, rng = mixed_batch(seed=seed + 3), np.random.default_rng(seed)
        with torch.no_grad():
            old = [[x.item() + rng.normal(0, 0.3) for x in plain_log_probs(plain_policy, t)] for t in batch]
        losses = plain_gradients(plain_policy, plain_critic, batch, old, "terminal")
        flat = np.array([x for row in old for x in row], np.float32)
        found = packed_gradients(actor, critic, batch, flat, "terminal", 40, 1, engines=True)
        assert found.tolist() == pytest.approx(list(losses), rel=1e-3, abs=1e-5)
        for engine, optimizer in zip((actor, critic), optimizers, strict=True):
            assert engine.step() == pytest.approx(optimizer.step(), rel=1e-3)

    for engine, side, begun in zip((actor, critic), expected, start, strict=True):
        for name, parameter in trained_with_adapters(engine.module.hf_model).items():
            moved = (side[name] - begun[name]).abs()
            off = (parameter.double() - side[name]).abs()
            assert moved.mean() > RATE / 2, name
            assert off.mean() < 0.002 * moved.mean(), name
    assert all(torch.equal(before[name], p) for name, p in base.named_parameters())

"""The learner's forward and backward on CUDA tensors that hold no memory: is a CPU tensor mixed in anywhere?

FakeTensorMode works out shapes, types and devices, and raises where two devices meet or data would be read. It needs
torch's CUDA build (`make setup DEVICE=cuda`) and no GPU.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import fields, replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.unit.rig.learner_samples import mixed_batch, tiny_config
from vcppo.common.config import VcppoConfig
from vcppo.learner.algorithm.actor_loss import Denominators, actor_loss
from vcppo.learner.algorithm.losses import probability_ratio
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.packing import PackedBatch, build_packed
from vcppo.learner.critic_training.update import critic_loss
from vcppo.learner.models.model_loading import prepare
from vcppo.learner.models.models import CriticModel, PolicyModel
from vcppo.learner.models.surprise import add_surprise_input

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="torch is built for the CPU: make setup DEVICE=cuda")

CUDA = torch.device("cuda", 0)


class Case(NamedTuple):
    dtype: torch.dtype
    head_size: int = 8
    window: int | None = None
    settings: dict[str, Any] = {}  # noqa: RUF012  (a NamedTuple's default is no shared state here: nobody writes to it)
    entropy_weight: float = 0.0


CASES = {
    "bfloat16": Case(torch.bfloat16),
    "float32": Case(torch.float32),
    "a sliding window": Case(torch.bfloat16, window=4),
    "heads that flash attention refuses": Case(torch.bfloat16, head_size=12),
    "an entropy bonus": Case(torch.bfloat16, entropy_weight=0.01),
    "GSPO": Case(torch.bfloat16, settings={"objective": "gspo"}),
    "bins": Case(torch.bfloat16, settings={"value_bins": 11}),
    "a critic that sees log-probs": Case(torch.bfloat16, settings={"sees_log_probs": True}),
}


@pytest.mark.parametrize("name", CASES)
def test_forward_losses_and_backward_stay_on_the_device(name: str, shapes_unchecked: None) -> None:
    case, batch = CASES[name], build_packed(mixed_batch())
    with FakeTensorMode() as mode:
        policy, critic = _models(case)
        packed = _on_cuda(batch, mode)
        algorithm = VcppoConfig.model_validate({"model": {"path": "-"}, "algorithm": _algorithm(case)}).algorithm
        log_probs, entropy = policy(packed, 0.7, case.entropy_weight > 0)
        part = _Part.like(log_probs)
        assert probability_ratio(log_probs, part.old_log_probs).device == CUDA
        loss = actor_loss(
            log_probs, entropy, part, algorithm, Denominators(7, 3), packed.action_cu_seqlens, case.entropy_weight
        )
        assert {each.device for each in loss.sums.values()} == {CUDA}
        _backward(loss.value)
        output = critic(packed)
        assert output.last_values.device == CUDA
        _backward(critic_loss(output, part.values, critic.hf_model.score.bins, num_tokens=7, mask=part.mask).value)
    for model in (policy, critic):
        without = [name for name, each in model.named_parameters() if each.grad is None]
        assert not without
        assert {(each.grad.device, each.grad.dtype) for each in model.parameters()} == {(CUDA, case.dtype)}


def test_a_tensor_left_on_the_cpu_is_found(shapes_unchecked: None) -> None:
    batch = build_packed(mixed_batch())
    with FakeTensorMode() as mode:
        policy, _ = _models(CASES["bfloat16"])
        packed = _on_cuda(batch, mode)
        with pytest.raises(RuntimeError, match="same device"):
            policy(replace(packed, position_ids=packed.position_ids.cpu()))


class _Part(NamedTuple):
    """As `vcppo.learner.rl.estimates.Part`, of tensors without memory."""

    old_log_probs: Tensor
    reference_log_probs: Tensor
    advantages: Tensor
    values: Tensor
    importance_weights: Tensor
    mask: Tensor
    loss_weights: Tensor
    positive: Tensor

    @classmethod
    def like(cls, log_probs: Tensor) -> _Part:
        one, yes = log_probs.detach(), torch.ones(len(log_probs), dtype=torch.bool, device=CUDA)
        return cls(one, one, one, one, one, yes, one, yes)


def _algorithm(case: Case) -> dict[str, Any]:
    settings = {key: value for key, value in case.settings.items() if key == "objective"}
    return {"dual_clip": 3.0, "kl_coefficient": 0.1, "positive_nll_coefficient": 0.1} | settings


def _models(case: Case) -> tuple[PolicyModel, CriticModel]:
    num_bins = case.settings.get("value_bins")
    window = {} if case.window is None else {"use_sliding_window": True, "sliding_window": case.window}
    config = tiny_config(
        head_dim=case.head_size, num_labels=num_bins or 1, pad_token_id=0, max_window_layers=0, **window
    )
    with torch.device(CUDA):
        models = [
            kind.from_config(config, dtype=case.dtype)
            for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification)
        ]
        if case.settings.get("sees_log_probs"):
            add_surprise_input(models[1], "new")
    for model in models:
        prepare(model, False)
    bins = None if num_bins is None else ValueBins(-1.0, 1.0, num_bins)
    return PolicyModel(models[0]), CriticModel(models[1], bins)


def _on_cuda(packed: PackedBatch, mode: FakeTensorMode) -> PackedBatch:
    """`PackedBatch.to` pins memory, which takes a real CUDA."""
    moved = {
        field.name: mode.from_tensor(value).to(CUDA)
        for field in fields(packed)
        if isinstance(value := getattr(packed, field.name), Tensor)
    }
    return replace(packed, **moved)


def _backward(loss: Tensor) -> None:
    """Node by node: autograd's own engine would start a thread for the GPU, which is not there."""
    order, seen, stack = [], set(), [(loss.grad_fn, False)]
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(following, False) for following, _ in node.next_functions if following is not None]
    arrived: dict[Any, dict[int, Tensor]] = defaultdict(dict)
    arrived[loss.grad_fn][0] = torch.ones_like(loss)
    with torch.no_grad():
        for node in reversed(order):
            _pass_on(node, arrived)


def _pass_on(node: Any, arrived: dict[Any, dict[int, Tensor]]) -> None:
    found = arrived.pop(node)
    metadata = node._input_metadata
    grads = [found.get(i, torch.zeros(one.shape, dtype=one.dtype, device=one.device)) for i, one in enumerate(metadata)]
    result = node.apply(*grads) if hasattr(node, "apply") else node(*grads)
    parts = result if isinstance(result, tuple) else (result,)
    for (following, number), part in zip(node.next_functions, parts, strict=False):
        if following is not None and part is not None:
            wanted, before = following._input_metadata[number], arrived[following].get(number)
            fitted = part.sum_to_size(wanted.shape).to(wanted.dtype)  # as the engine does
            assert fitted.device == wanted.device
            arrived[following][number] = fitted if before is None else before + fitted

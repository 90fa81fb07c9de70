"""A model with low-rank adapters (LoRA) as one without: W + s B A, a weight at a time, under the weight's plain name.

Adapters are peft's (`vcppo.learner.models.adapters`). They are told here by their shape alone, so that a run without
adapters never imports peft, which takes seconds.

In bfloat16 a change below half a unit in the last place is lost where it is added to what has been rounded already.

- *Forward* (`adapted_linear`): x W is not rounded before B A x is added. peft does round, and loses most of a small
  step: of a first step at 3e-4 SmolLM2-135M's log-probs rose by 0.07 nats with peft's forward, by 0.19 in float32.
- *Merged* (`merged_weight`): W has been rounded. So the sum is rounded up or down by chance, in proportion to what is
  left over: right on average, hence right in the sum over a row. The chance is the same at each walk: it is drawn from
  the weight's name. Where an adapter is zero, the weight is the base's to the bit.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import torch
from torch import Tensor, nn

ADAPTER = "default"  # peft's name of the only one
_HEADS = ("score.", "surprise_input.")  # of a critic: trained in full beside the adapters
_LOW_BITS = 16  # of a float32, that a bfloat16 lacks


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """Plain name of the weight → peft's layer around it."""
    return {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if hasattr(layer, "lora_A") and hasattr(layer, "base_layer")
    }


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name a parameter has in the model without adapters."""
    return name.replace(".base_layer.", ".")


def trained_with_adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All that is not the frozen base, by the model's own names: adapters, and a critic's head. Empty without any.

    Args:
        model: transformers', or the policy or critic around it.
    """
    if not adapted_layers(model):
        return {}
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if is_adapter(name) or name.removeprefix("hf_model.").startswith(_HEADS)
    }


def adapted_linear(layer: Any, x: Tensor) -> Tensor:
    """``[..., in]`` to ``[..., out]``: x W + s B A x, rounded once; in place of the forward of peft's `layer`."""
    base, rows = layer.base_layer, x.reshape(-1, x.shape[-1])
    low = nn.functional.linear(rows, layer.lora_A[ADAPTER].weight) * layer.scaling[ADAPTER]
    change = nn.functional.linear(low, layer.lora_B[ADAPTER].weight)
    total = torch.addmm(change, rows, base.weight.T).reshape(*x.shape[:-1], -1)
    return total if base.bias is None else total + base.bias


@torch.no_grad()
def merged_weight(name: str, layer: Any) -> Tensor:
    """``[out, in]`` in the base weight's type: W + s B A, computed in float32. A new tensor.

    Args:
        name: plain name of the weight.
        layer: peft's.
    """
    base = layer.base_layer.weight
    change = layer.lora_B[ADAPTER].weight.float() @ layer.lora_A[ADAPTER].weight.float()
    exact = change.mul_(layer.scaling[ADAPTER]).add_(base)
    return exact if base.dtype == torch.float32 else _rounded_by_chance(exact, crc32(name.encode())).to(base.dtype)


def _rounded_by_chance(exact: Tensor, seed: int) -> Tensor:
    """float32 values that a bfloat16 can hold; the bits below it count as the chance of the next larger magnitude."""
    generator = torch.Generator(exact.device).manual_seed(seed)
    chance = torch.empty(exact.shape, dtype=torch.int16, device=exact.device).random_(
        -(1 << 15), (1 << 15) - 1, generator=generator
    )
    bits = exact.view(torch.int32)
    bits.add_(chance).add_(1 << 15)
    bits.bitwise_and_(-(1 << _LOW_BITS))
    return exact

"""How far rounding alone moves a model's outputs, measured by rounding everything differently.

Within `rounded_differently` every output of a layer (linear, norm, activation, embedding) is multiplied by 1 + e, e
uniform within one unit in the last place of the type. What comes out differs from the plain result by about as much as
two implementations with other kernels, orders of summation and fusions do. It costs a forward pass and no memory, also
where ZeRO-3 holds the weights in parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vcppo.learner.models.merged_weights import adapted_layers

FLOAT32 = 2.0**-10  # float32 products are taken in TF32 on many GPUs
BFLOAT16 = 2.0**-7
_SEED = 20_26


def last_place(dtypes: tuple[str, ...]) -> float:
    """Relative size of a unit in the last place of the coarsest of these types (names as in the config)."""
    return BFLOAT16 if "bfloat16" in dtypes else FLOAT32


@contextmanager
def rounded_differently(model: nn.Module, size: float) -> Iterator[None]:
    """Add relative noise of this size to what every layer of `model` puts out; the same noise each time."""
    generators: dict[torch.device, torch.Generator] = {}

    def disturb(module: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        generator = generators.setdefault(output.device, torch.Generator(output.device).manual_seed(_SEED))
        noise = torch.empty(output.shape, dtype=torch.float32, device=output.device)
        noise.uniform_(-size, size, generator=generator)
        return (output.float() * (1.0 + noise)).to(output.dtype)

    adapted = {id(layer) for layer in adapted_layers(model).values()}  # they compute for the modules in them
    layers = [module for module in model.modules() if next(module.children(), None) is None or id(module) in adapted]
    handles = [layer.register_forward_hook(disturb) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

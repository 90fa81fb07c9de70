"""The weights a generator starts with: visibly wrong ones, so that the learner's first broadcast proves itself.

A model loader of vLLM's (`load_format`). It reads nothing from disk and gives every parameter random values of a scale
at which any single one left in place is plain to see in the log-probs: outputs of a random matrix are `MATRIX_SCALE`
times as large as its inputs, and norms and biases (zeros too, in a real model) are of size `VECTOR_SCALE`. What vLLM
does to weights after loading (packing, fusing) happens to these as it would to real ones. Whatever the path from the
learner's tensors to the numbers does not reach stays random, and the canary of the first update shows it.

Buffers keep what the model's own code gave them: the learner does not send them.
"""

from __future__ import annotations

import math
from itertools import count

import torch
from torch import Tensor, nn
from vllm.config import ModelConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader

LOAD_FORMAT = "vcppo_unset"
MATRIX_SCALE = 64.0
VECTOR_SCALE = 16.0


@register_model_loader(LOAD_FORMAT)
class UnsetWeightsLoader(BaseModelLoader):
    """Random values for every parameter."""

    def download_model(self, model_config: ModelConfig) -> None:
        """Nothing: no weights are read."""

    def load_weights(self, model: nn.Module, model_config: ModelConfig) -> None:
        """Fill the model by `scramble`: the learner sends the true weights before anything is generated."""
        scramble(model)


@torch.no_grad()
def scramble(model: nn.Module) -> None:
    """Overwrite every parameter, each with other values; the same ones in every process."""
    seeds = count()
    for parameter in model.parameters():  # a tied one comes once
        _fill(parameter.data, getattr(parameter, "dummy_weight_value", None), next(seeds))


def _fill(values: Tensor, given: float | None, seed: int) -> None:
    if values.is_meta:  # quantised while it is loaded: there is nothing yet
        return
    if given is not None:  # vLLM says what this one needs (scales, tables of places)
        values.fill_(given)
    elif not values.is_floating_point():
        values.zero_()
    else:
        limit = VECTOR_SCALE if values.ndim < 2 else MATRIX_SCALE * math.sqrt(3.0 / math.prod(values.shape[1:]))
        if values.ndim > 2:  # experts: [number, outputs, inputs]
            limit = MATRIX_SCALE * math.sqrt(3.0 / values.shape[-1])
        generator = torch.Generator(device=values.device).manual_seed(seed)
        if torch.finfo(values.dtype).bits < 16:  # float8 has no uniform_
            limit = min(limit, torch.finfo(values.dtype).max)
            values.copy_(torch.empty_like(values, dtype=torch.float32).uniform_(-limit, limit, generator=generator))
        else:
            values.uniform_(-limit, limit, generator=generator)

"""A model that is cut for ZeRO-3 while it is read: no rank ever holds all of it.

    safetensors, mapped ──▶ one module's weights: copied, cast, sent by rank 0, cut ──▶ the next module

The weights of a model that was loaded as it is stored (`vcppo.learner.models.model_loading.from_pretrained`) lie in the
mapped file: they take no memory of this process until they are copied here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def shard(module: nn.Module, dtype: torch.dtype, cut: Callable[[nn.Module], Any]) -> None:
    """Collective: give each weight its `dtype` and hand it to `cut`, module by module. Buffers stay as they are.

    Args:
        cut: DeepSpeed's ``zero.Init(module=...)``: it sends rank 0's values, keeps this rank's part and frees the rest.
            It passes over what it has cut before, such as a tied weight.
    """
    for each in module.modules():
        parameters = [parameter for parameter in each.parameters(recurse=False) if not hasattr(parameter, "ds_id")]
        for parameter in parameters:
            # A copy always: rank 0's values must not be written into the mapped file's pages, which would keep them.
            parameter.data = parameter.data.to(dtype if parameter.is_floating_point() else parameter.dtype, copy=True)
        if parameters:
            cut(_Own(parameters))


class _Own(nn.Module):
    """The parameters of one module without those of its children."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        super().__init__()
        self.own = nn.ParameterList(parameters)

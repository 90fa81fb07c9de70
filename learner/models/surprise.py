"""How unlikely each token was when it was sampled, as an input of the critic: ``critic.sees_log_probs``.

A slip of the policy is an unlikely token, and a small critic does not find that out by itself. V(s_t) sees the tokens
before a_t and what they were sampled with, never a_t: the policy gradient stays unbiased.

The weights are in the transformers model as ``surprise_input``, so that optimizer, checkpoints and saved folders have
them. A folder's config.json says so under ``vcppo_sees_log_probs``; transformers itself leaves the tensor out.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.model_folder.stated_config import find_file

MODULE = "surprise_input"
UNLIKELY = 2.0  # nats
_STATED = "vcppo_sees_log_probs"
_TENSOR = f"{MODULE}.weight"
_UNIT = 3.0  # nats
# The weights start at 0 and have far to go, and Adam's steps are of the learning rate's size: so many steps in one.
_SCALE = 20.0


class SurpriseRefused(VcppoError):
    """A saved critic sees log-probs and the run's does not, or its folder lacks the weights."""

    exit_code = EXIT_REFUSED


class SurpriseInput(nn.Linear):
    """Surprise of a token to what is added to its embedding; zero at first, computed in float32."""

    def __init__(self, width: int, dtype: torch.dtype = torch.float32) -> None:
        """`width` H of the embeddings."""
        super().__init__(2, width, bias=False, dtype=dtype)
        nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """``[N]`` float32 nats to ``[N, H]`` float32: 20 W f, with f = (nats / 3, 1 if above 2 else 0)."""
        features = torch.stack([input / _UNIT, (input > UNLIKELY).to(input.dtype)], dim=-1)
        return _SCALE * functional.linear(features, self.weight.float())


def surprise_input(model: PreTrainedModel) -> SurpriseInput | None:
    """Of a critic that has one."""
    found = getattr(model, MODULE, None)
    assert found is None or isinstance(found, SurpriseInput)
    return found


def embedded(model: PreTrainedModel, added: SurpriseInput, token_ids: Tensor, surprise: Tensor) -> Tensor:
    """``[N, H]`` in the model's type: what the first layer reads of ``[N]`` tokens."""
    embeddings: Tensor = model.get_input_embeddings()(token_ids)
    summed: Tensor = embeddings + added(surprise).to(embeddings.dtype)
    return summed


def check_stated_input(path: str, config: Any, wanted: bool) -> None:
    """Raise SurpriseRefused when the folder's critic sees log-probs and the run does not give them."""
    if getattr(config, _STATED, False) and not wanted:
        raise SurpriseRefused(
            f"the critic at {path} was trained with critic.sees_log_probs = true, and the run has false: set it to true"
            ", or take a new critic by critic.init=policy"
        )


def add_surprise_input(model: PreTrainedModel, path: str) -> None:
    """Put one into `model`: with the weights in the folder or hub id `path` where its config states them, else zeros.

    Raises:
        SurpriseRefused: the config states one, and there are no such weights.
    """
    weight = model.get_input_embeddings().weight
    added = SurpriseInput(weight.shape[-1], weight.dtype)
    if getattr(model.config, _STATED, False):
        found = _stored(path)
        if found is None or found.shape != added.weight.shape:
            raise SurpriseRefused(
                f"the critic at {path}: its config.json says {_STATED}, and its safetensors have no {_TENSOR} of shape"
                f" {tuple(added.weight.shape)}: restore the folder, or take a new critic by critic.init=policy"
            )
        with torch.no_grad():
            added.weight.copy_(found)
    model.add_module(MODULE, added)
    setattr(model.config, _STATED, True)


def _stored(path: str) -> Tensor | None:
    """``[H, 2]`` as saved; None when no file has it."""
    name = "model.safetensors"
    if (index := find_file(path, f"{name}.index.json")) is not None:
        name = json.loads(Path(index).read_bytes())["weight_map"].get(_TENSOR, name)
    if (file := find_file(path, name)) is None:
        return None
    with safe_open(file, framework="pt") as tensors:
        if _TENSOR not in tensors.keys():  # noqa: SIM118  (no mapping)
            return None
        found: Tensor = tensors.get_tensor(_TENSOR)
        return found

"""Low-rank adapters (LoRA) in place of full fine-tuning: trees of modules that share one frozen base. Imports peft.

    policy at model.path ─┬─ share ─▶ actor's tree, adapters of its own
                          ├─ share ─▶ critic's tree, adapters of its own, its head trained in full
                          └─ share ─▶ reference's tree: adapters that are zero, or those of a later version

A tree is modules, not numbers: its Parameters and buffers are the very objects of the tree it was copied from.
There is no dropout: old and new log-probs must be the same function of the weights.
"""

from __future__ import annotations

import shutil
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import MethodType
from typing import Any, TypeVar

import structlog
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from vcppo.common.config import LoraConfig
from vcppo.common.errors import EXIT_REFUSED, ConfigError, VcppoError
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.models.merged_weights import ADAPTER, adapted_layers, adapted_linear, trained_with_adapters

log = structlog.get_logger(__name__)

ModelT = TypeVar("ModelT", bound=nn.Module)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # peft's
_PEFT_PREFIX = "base_model.model."  # before each name in a file of peft's
_HEADS = ("lm_head", "score", "surprise_input")  # no adapter: a critic's are trained in full, the policy's is frozen


class AdapterRefused(VcppoError):
    """A folder's adapters are not those this model can take."""

    exit_code = EXIT_REFUSED


def share(model: ModelT) -> ModelT:
    """Another tree of modules over the same Parameters and buffers."""
    return deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})


def add_adapters(model: PreTrainedModel, config: LoraConfig) -> None:
    """Put adapters into `model`, in place, with B = 0; freeze all but them and a critic's head.

    Raises:
        ConfigError: ``lora.target_modules`` names what is no linear layer of the backbone, or there is none at all.
    """
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    assert config.rank is not None
    alpha: Any = config.alpha_or_default  # peft says int, and takes any number
    made = PeftConfig(
        r=config.rank, lora_alpha=alpha, target_modules=_targets(model, config.target_modules),
        lora_dropout=0.0, bias="none",
    )  # fmt: skip
    inject_adapter_in_model(made, model, adapter_name=ADAPTER)
    for layer in adapted_layers(model).values():
        layer.forward = MethodType(adapted_linear, layer)
    trained = trained_with_adapters(model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = name in trained
    log.info("adapters_added", model=type(model).__name__, rank=config.rank, layers=len(adapted_layers(model)),
             num_trained=sum(each.numel() for each in trained.values()))  # fmt: skip


def _targets(model: nn.Module, wanted: list[str]) -> list[str]:
    """Last parts of the names of the linear layers that get an adapter."""
    linear = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.partition(".")[0] not in _HEADS
    ]
    known = list(dict.fromkeys(name.rpartition(".")[2] for name in linear))
    unknown = [name for name in wanted if name not in known]
    if unknown or not known:
        raise ConfigError(
            f"lora.target_modules = {wanted}: {', '.join(unknown) or 'nothing'} is no linear layer of"
            f" {type(model).__name__}: they are {', '.join(known) or 'none'}: take some of these, or [] for all"
        )
    return wanted or known


def without_adapters(model: PreTrainedModel) -> PreTrainedModel:
    """Another tree over the same base, as transformers made it: what saves config and code."""
    plain = share(model)
    for name, layer in adapted_layers(model).items():
        parent, _, child = name.removesuffix(".weight").rpartition(".")
        setattr(plain.get_submodule(parent), child, share(layer.base_layer))
    for name in ("peft_config", "_hf_peft_config_loaded"):
        vars(plain).pop(name, None)
    return plain


def save_adapter(model: PreTrainedModel, folder: Path, base: str, state: dict[str, Tensor] | None = None) -> None:
    """Write a folder that peft loads onto the model at `base`: adapters, and a critic's head.

    Args:
        state: their tensors by the model's own names, copied earlier; None: those of now.
    """
    kept = trained_with_adapters(model)
    tensors: dict[str, Tensor] = {n: p.detach() for n, p in kept.items()} if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    is_critic = any(name.startswith("score.") for name in kept)
    described = replace(
        _peft_config(model),
        base_model_name_or_path=base,
        task_type="SEQ_CLS" if is_critic else "CAUSAL_LM",
        modules_to_save=["score"] if is_critic else None,
        inference_mode=True,
    )
    described.save_pretrained(str(folder))
    found = {_PEFT_PREFIX + name.replace(f".{ADAPTER}.", "."): t.cpu().contiguous() for name, t in tensors.items()}
    save_file(found, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    shutil.copymode(folder / ADAPTER_CONFIG, folder / ADAPTER_WEIGHTS)


def load_adapter(model: PreTrainedModel, folder: Path) -> None:
    """What `save_adapter` wrote, into the adapters that `model` has.

    Raises:
        AdapterRefused: it is not there, or is of another rank or other layers.
    """
    wanted = trained_with_adapters(model)
    try:
        found = load_file(folder / ADAPTER_WEIGHTS)
        names = {name: _PEFT_PREFIX + name.replace(f".{ADAPTER}.", ".") for name in wanted}
        if found.keys() != set(names.values()):
            raise ValueError(f"{sorted(found.keys() ^ set(names.values()))[:2]} are in one of the two only")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(found[names[name]].view_as(parameter))
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise AdapterRefused(
            f"{folder}: holds no adapters for this {type(model).__name__} ({type(error).__name__}: {one_line(error)}):"
            " give lora.rank, lora.target_modules and critic.sees_log_probs as they were, or other adapters"
        ) from error


def _peft_config(model: PreTrainedModel) -> Any:
    return model.peft_config[ADAPTER]

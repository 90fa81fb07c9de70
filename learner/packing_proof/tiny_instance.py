"""A model's architecture with small numbers: the same layers, settings and code, random weights, built in a fraction of
a second.

All widths are divided by one power of two, so whatever must divide something else still does; counts of heads, groups
and experts stay. The first layers are kept, as many as it takes to have one of every kind. Windows, chunks and the
vocabulary become so small that a short sequence goes beyond them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

VOCABULARY = 64
WINDOW = 8  # tokens
_POSITIONS = 64
_SMALL_WIDTH = 64  # of hidden states: small enough
_FACTORS = (64, 32, 16, 8, 4, 2, 1)
_MAX_PARAMETERS = 60_000_000
_LAYER_COUNTS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
_WIDTHS = re.compile(
    r"(^d_|_size$|_size_mlp$|_dim$|_rank$|_width$|_dims$|^n_embd$|^n_inner$|^ffn_dim|_d_head$|_d_ssm$|_d_state$)"
)
_NOT_WIDTHS = re.compile(r"(vocab|kernel|conv|window|chunk|patch|image|group_size|block_size|batch)")


def tiny_configs(config: Any, auto_class: Any, **how: Any) -> Iterator[Any]:
    """Small forms of ``config``, smallest first. Which of them make a model is for the caller to try.

    Args:
        how: what `from_config` takes besides.
    """
    text = config.get_text_config()
    width = getattr(text, "hidden_size", None) or 0
    for factor in _FACTORS:
        if factor > 1 and (width % factor or width // factor < _SMALL_WIDTH):
            continue
        try:
            small = _narrowed(config, factor)
            with torch.device("meta"):
                model = auto_class.from_config(small, **how)
            _shorten(small, _layers_needed(model, small))
            with torch.device("meta"):
                model = auto_class.from_config(small, **how)
        except Exception:  # noqa: BLE001, S112  (a division that this architecture does not stand: the next factor)
            continue
        if sum(parameter.numel() for parameter in model.parameters()) <= _MAX_PARAMETERS:
            yield small


def randomise(model: PreTrainedModel) -> None:
    """Weights so large that attention, routing and outputs are far from uniform, and biases and sinks are not zero.

    Drawn from torch's global generator.
    """
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
            elif id(parameter) in embeddings:
                parameter.normal_()
            else:
                parameter.normal_(std=1.5 * parameter.shape[-1] ** -0.5)


def _narrowed(config: Any, factor: int) -> Any:
    """A copy with narrow widths, at full depth."""
    small = deepcopy(config)
    for part in _parts(small):
        for name, value in list(vars(part).items()):
            if (changed := _changed(name, value, factor)) is not None:
                setattr(part, name, changed)
        for name in ("rope_parameters", "rope_scaling"):
            if isinstance(rope := getattr(part, name, None), dict):
                setattr(part, name, _narrow_rope(rope, factor))
    small.dtype = torch.float32
    return small


def _parts(config: Any) -> list[Any]:
    """The config and all configs within it."""
    found = [config]
    for value in vars(config).values():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            found += _parts(value)
    return found


def _changed(name: str, value: Any, factor: int) -> Any:
    """The field's new value; None to leave it."""
    if name.endswith(("_token_id", "_token_index")):
        return _small_token(value)
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if name.startswith("vocab_size"):
        return min(value, VOCABULARY)
    if name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        return min(value, _POSITIONS)
    if ("window" in name or "chunk" in name) and "layers" not in name:
        return min(value, WINDOW)
    if _WIDTHS.search(name) and not _NOT_WIDTHS.search(name) and value % factor == 0 and value > factor:
        return value // factor
    return None


def _small_token(value: Any) -> Any:
    if isinstance(value, list):
        return [_small_token(each) for each in value][:1]
    return value % 3 if isinstance(value, int) and value >= VOCABULARY else None


def _narrow_rope(rope: dict[str, Any], factor: int) -> dict[str, Any]:
    """Frequencies are given pair by pair of a head's dimensions; settings may be nested by kind of layer."""
    changed = dict(rope)
    for name, value in rope.items():
        if isinstance(value, dict):
            changed[name] = _narrow_rope(value, factor)
        elif isinstance(value, list) and len(value) > factor:
            changed[name] = value[: len(value) // factor]
    return changed


def _layers_needed(model: PreTrainedModel, config: Any) -> int:
    """How many of the first layers have one of every kind, at least two. All of them where none can be told apart."""
    depth = _depth(config)
    layers = next((m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth), None)
    if layers is None:
        return depth
    kinds = [_kind(layer) for layer in layers]
    return min(depth, max(2, *(kinds.index(kind) + 1 for kind in set(kinds))))


def _kind(layer: nn.Module) -> str:
    """Equal for layers that compute alike: their modules with shapes and plain settings, but for the layer's number."""
    described = []
    for name, module in layer.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if isinstance(value, int | float | str | bool | None) and "idx" not in key and "index" not in key
        }
        shapes = [(key, tuple(parameter.shape)) for key, parameter in module.named_parameters(recurse=False)]
        described.append((name, type(module).__name__, sorted(settings.items()), shapes))
    return repr(described)


def _depth(config: Any) -> int:
    text = config.get_text_config()
    return int(next(getattr(text, name) for name in _LAYER_COUNTS if getattr(text, name, None)))


def _shorten(config: Any, depth: int) -> None:
    """Keep the first layers, also in lists that have an entry for each."""
    text, before = config.get_text_config(), _depth(config)
    for name, value in list(vars(text).items()):
        if isinstance(value, list | tuple) and len(value) == before:
            setattr(text, name, value[:depth])
    for name in _LAYER_COUNTS:
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, depth)

"""Which parameters are left as they are: those whose name a pattern of the config finds.

Names are those of the transformers model: ``model.embed_tokens.weight``, ``model.layers.0.mlp.up_proj.weight``,
``score.weight``. A tied weight has both of its names. It is done before an optimizer is made, so that what is frozen
has no gradient, no moments and no float32 master.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import structlog
from torch import nn

from vcppo.common.errors import ConfigError

log = structlog.get_logger(__name__)

_SHOWN = 4  # names in a message


def freeze(hf_model: nn.Module, patterns: Sequence[str], setting: str) -> None:
    """Turn gradients off for every parameter in whose name one of `patterns` is found (`re.search`).

    Args:
        setting: what the config calls the patterns.

    Raises:
        ConfigError: a pattern finds nothing, or nothing is left to train.
    """
    named = list(hf_model.named_parameters(remove_duplicate=False))
    names = [name for name, _ in named]
    for pattern in patterns:
        found = [parameter for name, parameter in named if re.search(pattern, name)]
        if not found:
            raise ConfigError(
                f"{setting}: {pattern!r} is found in no parameter's name: they are {_examples(names)}: correct the"
                " pattern, or leave it out"
            )
        for parameter in found:
            parameter.requires_grad = False
    num_trained, total = num_trained_parameters(hf_model)
    if not num_trained:
        raise ConfigError(
            f"{setting} = {list(patterns)}: leaves nothing to train: all of {_examples(names)} are found: take a"
            " pattern out, or make one narrower"
        )
    if patterns:
        log.info("parameters_frozen", setting=setting, model=type(hf_model).__name__, num_trained=num_trained,
                 num_frozen=total - num_trained)  # fmt: skip


def num_trained_parameters(hf_model: nn.Module) -> tuple[int, int]:
    """(numbers that are trained, all numbers); a tied weight counts once."""
    parameters = list(hf_model.parameters())
    return sum(p.numel() for p in parameters if p.requires_grad), sum(p.numel() for p in parameters)


def trained_share(hf_model: nn.Module) -> str:
    """For a line of `vcppo check`: ``, 0.1 M of them trained``; empty where all are."""
    num_trained, total = num_trained_parameters(hf_model)
    return "" if num_trained == total else f", {num_trained / 1e6:,.1f} M of them trained"


def _examples(names: Iterable[str]) -> str:
    """The first and the last few."""
    every = list(dict.fromkeys(names))
    if len(every) <= 2 * _SHOWN:
        return ", ".join(every)
    return f"{', '.join(every[:_SHOWN])}, ..., {', '.join(every[-_SHOWN:])}"

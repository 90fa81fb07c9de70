"""Weights under the names, and in the pieces, that the checkpoint has: what vLLM's ``load_weights`` takes.

transformers 5 renames and fuses weights while it loads (Mixtral's ``block_sparse_moe.experts.3.w1`` becomes a slice of
``mlp.experts.gate_up_proj``) and turns that round in ``save_pretrained``. Here the same reverse conversions run group
by group: a group is the smallest set of a model's own tensors that a conversion needs at once, nearly always one.
So no more than one group is gathered at a time, and everything in front of the gathering (names, types, shapes) is
worked out on meta tensors. Adapters are merged on the way (`vcppo.learner.models.merged_weights`), a group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from vcppo.common.errors import VcppoError
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.models.merged_weights import adapted_layers, is_adapter, merged_weight, plain_name


class ParameterInfo(NamedTuple):
    """A weight as generators know it: the checkpoint's name, type on the wire, full (unsharded) shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Gather(Protocol):
    """Makes these parameters whole within the context, on every rank."""

    def __call__(self, parameters: list[nn.Parameter]) -> AbstractContextManager[Any]: ...


@dataclass(frozen=True)
class WireGroup:
    """What one conversion turns back.

    Attributes:
        tensors: the model's own names, the pattern of the conversion each one matched, and the tensors.
        conversion: transformers' reversed conversion, never used itself: it collects tensors, so each use takes a copy.
        name: the first of the checkpoint's names, as the conversion wants it.
        infos: what comes out, in order.
    """

    tensors: tuple[tuple[str, str, Tensor], ...]
    conversion: Any
    name: str
    infos: tuple[ParameterInfo, ...] = ()

    def convert(self, model: PreTrainedModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """`tensors` stand for those of `self.tensors`, in their order."""
        conversion = deepcopy(self.conversion)
        for (own_name, pattern, _), tensor in zip(self.tensors, tensors, strict=True):
            conversion.add_tensor(self.name, own_name, pattern, tensor)
        made = conversion.convert(self.name, model=model, config=model.config)
        return {name: found[0] if isinstance(found, list) else found for name, found in made.items()}


class WireWeights:
    """All weights of a model that a checkpoint of it holds: parameters and persistent buffers, tied ones once."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Local: gathers nothing.

        Raises:
            VcppoError: a conversion of transformers can't be turned round for this model.
        """
        self._model = model
        self._adapted = adapted_layers(model)
        self._groups = tuple(self._described(group) for group in _groups(model))

    @property
    def infos(self) -> list[ParameterInfo]:
        """In the order of `walk`."""
        return [info for group in self._groups for info in group.infos]

    @torch.no_grad()
    def walk(self, gather: Gather) -> Iterator[tuple[str, Tensor]]:
        """(checkpoint's name, full tensor ``[...]``) one after the other; valid until the next one is asked for.

        ``gather`` is called once a group, in the same order on every rank.
        """
        for group in self._groups:
            parameters = [tensor for *_, tensor in group.tensors if isinstance(tensor, nn.Parameter)]
            with gather(parameters):
                made = group.convert(self._model, [self._whole(name, tensor) for name, _, tensor in group.tensors])
                for info in group.infos:
                    yield info.name, made[info.name]

    def _whole(self, own_name: str, tensor: Tensor) -> Tensor:
        return whole_weight(self._adapted, own_name, tensor)

    def _described(self, group: WireGroup) -> WireGroup:
        stand_ins = [torch.empty(full_shape(t), dtype=t.dtype, device="meta") for *_, t in group.tensors]
        try:
            made = group.convert(self._model, stand_ins)
        except Exception as error:  # conversions are transformers' own, a hundred kinds
            raise VcppoError(
                f"model {self._model.name_or_path!r}: transformers can't turn {group.tensors[0][0]} back into the "
                f"checkpoint's form ({one_line(error)}), so generators can't be sent this {type(self._model).__name__}:"
                " choose another model.path"
            ) from error
        infos = tuple(ParameterInfo(name, t.dtype, tuple(t.shape)) for name, t in made.items())
        return WireGroup(group.tensors, group.conversion, group.name, infos)


def own_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers ``[...]`` by the model's own names; a tied one once, under its first name.

    Of a model with adapters: the base's, under their plain names (`whole_weight` merges).
    """
    kept = set(model.state_dict().keys())
    weights: dict[str, Tensor] = {plain_name(n): p for n, p in model.named_parameters() if not is_adapter(n)}
    return weights | {plain_name(name): buffer for name, buffer in model.named_buffers() if name in kept}


def whole_weight(adapted: Mapping[str, Any], own_name: str, tensor: Tensor) -> Tensor:
    """One of `own_weights` with its adapter, if it has one, of `adapted_layers`; without a gradient."""
    layer = adapted.get(own_name)
    return tensor.detach() if layer is None else merged_weight(own_name, layer)


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """Of a model that is not cut: `own_weights`, each with its adapter, and the adapters besides."""
    adapted = adapted_layers(model)
    merged = {name: whole_weight(adapted, name, tensor) for name, tensor in own_weights(model).items()}
    return merged | {name: each.detach() for name, each in model.named_parameters() if is_adapter(name)}


def full_shape(tensor: Tensor) -> tuple[int, ...]:
    """Of a parameter that ZeRO-3 may have sharded: between uses its own tensor is ``[0]``."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _groups(model: PreTrainedModel) -> list[WireGroup]:
    """As `transformers.core_model_loading.revert_weight_conversion` puts them together, but without a tensor."""
    reversed_ones = [conversion.reverse_transform() for conversion in reversed(_conversions(model))]
    renamings = [each for each in reversed_ones if isinstance(each, WeightRenaming)]
    converters = [each for each in reversed_ones if isinstance(each, WeightConverter)]
    by_pattern = {pattern: each for each in converters for pattern in each.source_patterns}
    found: dict[str, tuple[Any, list[tuple[str, str, Tensor]]]] = {}
    for own_name, tensor in sorted(own_weights(model).items(), key=lambda item: dot_natural_key(item[0])):
        name, pattern = rename_source_key(own_name, renamings, converters, reverse=True)
        conversion = by_pattern[pattern] if pattern is not None else WeightRenaming(own_name, name)
        found.setdefault(name, (conversion, []))[1].append((own_name, pattern or own_name, tensor))
    return [WireGroup(tuple(tensors), conversion, name) for name, (conversion, tensors) in found.items()]


def _conversions(model: PreTrainedModel) -> list[Any]:
    """Those that loading the model used, else its class's own."""
    used = getattr(model, "_weight_conversions", None)
    if used is not None:
        return list(used)
    found = get_model_conversion_mapping(model, add_legacy=False)
    return [conversion for conversion in found if not isinstance(conversion, PrefixChange)]

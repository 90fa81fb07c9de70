"""Faults in a generator's weight updates, on order: the worker extension that `cases.weight_proof` gives vLLM.

Importing it wraps the product's worker engine, in the generator's process. An order is a JSON file (its path is in the
environment, `ORDER_VARIABLE`), read at every update:

    scramble    first overwrite all weights, as a new engine has them
    leave_out   [names] the model is never given
    swap        [[i, j]] layers that get each other's tensors
    keep_old    the model is given nothing
    keep_head   the head of a tied model goes on with a copy of its old weights (as vLLM's CPU build does by itself,
                where it packs them)
    flip        [name, number of a byte] that differs from what was sent
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from vcppo.generator.vllm_engine.gloo_engine import GlooUpdateInfo, GlooWeightTransferEngine, _Chunk, tied_heads
from vcppo.generator.vllm_engine.unset_weights import _fill

ORDER_VARIABLE = "VCPPO_WEIGHT_FAULTS"
_LAYER = re.compile(r"(?<=\.layers\.)\d+(?=\.)")
_Weights = Iterable[tuple[str, torch.Tensor]]

_start, _receive = GlooWeightTransferEngine.start_weight_update, GlooWeightTransferEngine.receive_weights
_finish, _tensors = GlooWeightTransferEngine.finish_weight_update, _Chunk.tensors
_layout: list[tuple[str, torch.dtype, list[int]]] = []
_wrong: list[tuple[str, torch.Tensor]] = []


class WeightFaults:
    """Nothing to add: importing this module is what counts."""


def order() -> dict[str, Any]:
    path = Path(os.environ[ORDER_VARIABLE])
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return found


class _Faulty:
    """A model whose ``load_weights`` gets less, or something else, than it was sent."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def load_weights(self, weights: _Weights) -> Any:
        return self._model.load_weights(_changed(weights, order()))


def _changed(weights: _Weights, wanted: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    places = {a: b for pair in wanted.get("swap", []) for a, b in (pair, reversed(pair))}
    for name, tensor in weights:
        if wanted.get("keep_old") or name in wanted.get("leave_out", []):
            continue
        yield _LAYER.sub(lambda found: str(places.get(int(found[0]), int(found[0]))), name), tensor


def start_weight_update(self: Any) -> None:
    if order().get("scramble") and _layout:
        _start(self)
        if not _wrong:
            _wrong.extend(_wrong_weights())
        self.model.load_weights(iter(_wrong))
        _finish(self)
    kept = tied_heads(self.model) if order().get("keep_head") else []
    old = [(head, head.weight.detach().clone()) for head, _ in kept]
    _start(self)
    for head, weight in old:
        head.cpu_linear = partial(_linear_of, weight)
    if kept:
        self._tied_heads = []


def _wrong_weights() -> Iterator[tuple[str, torch.Tensor]]:
    for number, (name, dtype, shape) in enumerate(_layout):
        values = torch.empty(shape, dtype=dtype)
        _fill(values, None, number)
        yield name, values


def receive_weights(self: Any, update_info: GlooUpdateInfo) -> None:
    dtypes = [getattr(torch, name) for name in update_info.dtype_names]
    _layout[:] = zip(update_info.names, dtypes, update_info.shapes, strict=True)
    model = self.model
    self.model = _Faulty(model)
    try:
        _receive(self, update_info)
    finally:
        self.model = model


def tensors(self: Any, deadline: Any) -> Iterator[tuple[str, torch.Tensor]]:
    name_to_flip, number = order().get("flip", ("", 0))
    for name, tensor in _tensors(self, deadline):
        if name == name_to_flip:
            tensor.view(-1).view(torch.uint8)[number] ^= 1
        yield name, tensor


def _linear_of(old: torch.Tensor, values: torch.Tensor, _weight: torch.Tensor, bias: torch.Tensor | None) -> Any:
    return torch.nn.functional.linear(values, old, bias)


if ORDER_VARIABLE in os.environ:  # in a generator of `cases.weight_proof`; whoever else imports this is left alone
    GlooWeightTransferEngine.start_weight_update = start_weight_update  # type: ignore[method-assign]
    GlooWeightTransferEngine.receive_weights = receive_weights  # type: ignore[method-assign]
    _Chunk.tensors = tensors  # type: ignore[method-assign]

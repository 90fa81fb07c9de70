"""Sums of the weights a worker was sent, tensor by tensor.

They go back to the learner, which compares them with those of what it sent (`vcppo.common.tensor_sums`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

from torch import Tensor, nn

from vcppo.common.tensor_sums import as_ints, byte_sum, names_sum


class SumsReport(TypedDict):
    """Sums of one update.

    Attributes:
        names: of the tensors' names in the order they came.
        sums: of each tensor's bytes, in the same order.
        stale: heads that share the embedding's weight and compute with another copy than the embedding.
    """

    names: int
    sums: list[int]
    stale: int


class ReceivedSums:
    """Sums the tensors of one update on their way to the model."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._sums: list[Any] = []
        self.stale = 0

    def begin(self) -> None:
        """A new update."""
        self._names, self._sums, self.stale = [], [], 0

    def passing(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same tensors ``[...]``, each summed before it is handed on."""
        for name, tensor in weights:
            self._names.append(name)
            self._sums.append(byte_sum(tensor))
            yield name, tensor

    def report(self) -> SumsReport:
        """What the learner compares with what it sent: names, byte sums, and the number of stale tied heads."""
        return {"names": names_sum(self._names), "sums": as_ints(self._sums), "stale": self.stale}


class SummingModel:
    """Stands in for a model whose ``load_weights`` gets an update in pieces; everything else is the model's."""

    def __init__(self, model: nn.Module, sums: ReceivedSums) -> None:
        self._model, self._sums = model, sums

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> Any:
        """The model's own, of the same tensors ``[...]``, summed as they pass."""
        return self._model.load_weights(self._sums.passing(weights))  # type: ignore[operator]

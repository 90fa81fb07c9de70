"""The nccl worker engine: vLLM's own receiving, with sums. No GPU: the packets are played, the flow is real."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vcppo.common.tensor_sums import byte_sum, names_sum
from vcppo.generator.vllm_engine.nccl_engine import SummingNcclEngine
from vcppo.learner.weights.transport_check import SentWeights, transport_fault

TENSORS = {"a": torch.randn(5, 3), "b": torch.randn(7).bfloat16(), "c": torch.randn(2, 2)}


class Model:
    """Keeps what it is loaded with."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.config = "whatever else a model has"

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        self.loaded |= dict(weights)


def engine(monkeypatch: pytest.MonkeyPatch, arriving: dict[str, torch.Tensor]) -> tuple[Any, Model]:
    """One whose packets hold `arriving`, two tensors at a time."""

    def play(iterator: Iterator[Any], post_unpack_func: Any, **_: Any) -> None:
        assert [name for name, _ in iterator] == list(TENSORS)
        items = list(arriving.items())
        for start in range(0, len(items), 2):
            post_unpack_func(items[start : start + 2])

    monkeypatch.setattr("vllm.distributed.weight_transfer.nccl_engine.packed_nccl_broadcast_consumer", play)
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    model = Model()
    made: Any = SummingNcclEngine(None, config, torch.device("cpu"), model)
    made.model_update_group, made.packed = object(), True
    return made, model


INFO = {
    "names": list(TENSORS),
    "dtype_names": [str(tensor.dtype).removeprefix("torch.") for tensor in TENSORS.values()],
    "shapes": [list(tensor.shape) for tensor in TENSORS.values()],
}
SENT = SentWeights(tuple(TENSORS), tuple(byte_sum(tensor) for tensor in TENSORS.values()))


def test_what_passes_is_loaded_and_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, model = engine(monkeypatch, TENSORS)
    for _ in range(2):  # an update's sums are its own
        worker.receive_weights(worker.parse_update_info(INFO))
        report = worker.sums.report()
        assert report == {"names": names_sum(TENSORS), "sums": list(SENT.sums), "stale": 0}
        assert transport_fault([report], SENT) == ""
    assert worker.model is model
    assert all(torch.equal(model.loaded[name], tensor) for name, tensor in TENSORS.items())


def test_a_flipped_bit_is_seen_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spoilt = TENSORS["b"].clone()
    spoilt.view(torch.uint8)[3] ^= 4
    worker, _ = engine(monkeypatch, {**TENSORS, "b": spoilt})
    worker.receive_weights(worker.parse_update_info(INFO))
    assert transport_fault([worker.sums.report()], SENT).startswith("the bytes it received of b are not")


def test_the_model_is_its_own_again_when_receiving_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, model = engine(monkeypatch, TENSORS)
    model.load_weights = lambda _: 1 / 0  # type: ignore[assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        worker.receive_weights(worker.parse_update_info(INFO))
    assert worker.model is model

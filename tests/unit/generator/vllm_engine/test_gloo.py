"""The two halves of the gloo weight transfer against each other: no vLLM engine, a plain module as the model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vcppo.generator.vllm_engine.gloo_engine import GlooUpdateInfo, GlooWeightTransferEngine
from vcppo.learner.weights.fan_out import beside
from vcppo.learner.weights.gloo_trainer import (
    GlooTrainerInitInfo,
    GlooTrainerWeightTransferEngine,
    LockstepSource,
    cut_chunks,
)

TENSORS = {
    "odd": torch.arange(7, dtype=torch.bfloat16),  # 14 bytes: what follows is not aligned to float32
    "plain": torch.randn(3, 5),
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 4),
    "large": torch.randn(64, 32),
    "transposed": torch.randn(6, 4).T,
}


class Weights:
    """A weight source that counts its walks."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.num_yielded = 0

    def weight_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [(name, t.dtype, tuple(t.shape)) for name, t in TENSORS.items()]

    def weight_source(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in TENSORS.items():
            self.num_yielded += 1
            yield name, tensor


class Model:
    """Keeps what it is loaded with; may refuse."""

    def __init__(self) -> None:
        self.loaded: dict[str, torch.Tensor] = {}
        self.refuse = ""

    def load_weights(self, weights: Iterator[tuple[str, torch.Tensor]]) -> None:
        for name, tensor in weights:
            if name == self.refuse:
                raise ValueError(f"no place for {name}")
            self.loaded[name] = tensor


class Client:
    """Calls the worker engines in this process, as FanOut would over the network."""

    def __init__(self, workers: list[GlooWeightTransferEngine]) -> None:
        self.workers = workers
        self.finished = 0

    def init_weight_transfer_engine(self, info: dict[str, Any]) -> None:
        def join(index: int) -> None:
            values = info | {"rank_offset": 1 + index, "bind_host": "127.0.0.1"}
            self.workers[index].init_transfer_engine(self.workers[index].parse_init_info(values))

        for future in [beside(lambda i=i: join(i)) for i in range(len(self.workers))]:  # type: ignore[misc]
            future.result(30)

    def start_weight_update(self) -> None:
        return

    def update_weights(self, info: dict[str, Any]) -> None:
        for future in [beside(lambda w=w: w.update_weights(info)) for w in self.workers]:  # type: ignore[misc]
            future.result(30)

    def finish_weight_update(self) -> None:
        self.finished += 1


def make(num_workers: int, buffer_bytes: int) -> tuple[Any, Client, list[Model], Weights, LockstepSource]:
    parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
    models = [Model() for _ in range(num_workers)]
    workers = [GlooWeightTransferEngine(None, config, torch.device("cpu"), m) for m in models]  # type: ignore[arg-type]
    client, weights = Client(workers), Weights()
    source = LockstepSource(weights)
    info = GlooTrainerInitInfo("127.0.0.1", num_workers + 1, "g", 20.0, buffer_bytes, rank=0)
    engine = GlooTrainerWeightTransferEngine.trainer_init(info, client=client, source=source)
    return engine, client, models, weights, source


@pytest.mark.parametrize(("num_workers", "buffer_bytes"), [(1, 1), (2, 100), (3, 1 << 20)])
def test_every_worker_gets_every_tensor_bit_for_bit(num_workers: int, buffer_bytes: int) -> None:
    engine, client, models, _, source = make(num_workers, buffer_bytes)
    for _ in range(2):
        source.begin_round()
        engine.send_weights()
        for model in models:
            assert list(model.loaded) == list(TENSORS)
            assert all(torch.equal(model.loaded[n], t) and model.loaded[n].dtype == t.dtype for n, t in TENSORS.items())
            model.loaded = {}
    assert client.finished == 2
    engine.shutdown()


def test_a_worker_that_refuses_is_heard_at_once_and_the_round_can_be_completed() -> None:
    engine, client, models, weights, source = make(2, 64)
    models[1].refuse = "large"
    source.begin_round()
    began = time.monotonic()
    with pytest.raises(ValueError, match="no place for large"):
        engine.send_weights()
    assert time.monotonic() - began < 10.0  # the collective's own deadline is 20 s
    assert client.finished == 0
    source.complete_round()
    assert weights.num_yielded == len(TENSORS)
    engine.shutdown()


def test_a_worker_that_vanishes_breaks_the_broadcast_before_its_deadline() -> None:
    engine, client, _, _, source = make(2, 64)
    client.workers[0].shutdown()
    began = time.monotonic()
    with pytest.raises(RuntimeError):
        engine.send_weights()
    assert time.monotonic() - began < 15.0
    source.complete_round()
    engine.shutdown()


def test_chunks_hold_at_most_a_buffer_or_one_larger_tensor() -> None:
    meta = LockstepSource(Weights()).metadata()
    assert cut_chunks(meta, 1) == [1, 1, 1, 1, 1, 1]
    assert cut_chunks(meta, 1 << 20) == [len(TENSORS)]
    chunks = cut_chunks(meta, 100)
    assert sum(chunks) == len(TENSORS)
    assert chunks == [4, 1, 1]


def test_an_update_info_that_disagrees_with_itself_is_refused() -> None:
    with pytest.raises(ValueError, match="chunks that sum to 2"):
        GlooUpdateInfo(names=["a"], dtype_names=["float32"], shapes=[[1]], chunks=[2])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_an_update_on_cuda_is_waited_for(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch has no accelerator to wait for on a CPU, and raises there."""
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append(kind))
    monkeypatch.setattr(GlooWeightTransferEngine, "receive_weights", lambda self, info: None)
    config: Any = SimpleNamespace(parallel_config=None, model_config=None)
    engine = GlooWeightTransferEngine(None, config, torch.device(kind), None)  # type: ignore[arg-type]
    engine.update_weights({"names": [], "dtype_names": [], "shapes": [], "chunks": []})
    assert waited == ([kind] if kind == "cuda" else [])

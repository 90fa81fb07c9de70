"""The sending end of a weight group, without a group: what is left of an update that broke off."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vcppo.learner.weights import gloo_trainer
from vcppo.learner.weights.gloo_trainer import GlooTrainerWeightTransferEngine, LockstepSource


def test_an_answer_that_comes_after_the_group_was_left_is_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A generator's refusal breaks the collective; it may be heard of while the group is being left."""
    late: Future[Any] = Future()
    aborted: list[bool] = []
    monkeypatch.setattr(gloo_trainer, "beside", lambda function: late)
    trainer: Any = GlooTrainerWeightTransferEngine.__new__(GlooTrainerWeightTransferEngine)
    trainer._info = SimpleNamespace(buffer_bytes=100)
    trainer._deadline = timedelta(seconds=0.01)
    trainer._group = SimpleNamespace(abort=lambda: aborted.append(True))
    trainer._store = None
    trainer.is_sender = True
    trainer.client = SimpleNamespace(start_weight_update=lambda: None, update_weights=lambda info: None)

    class Source:
        def metadata(self) -> list[Any]:
            return [SimpleNamespace(name="a", shape=(1,), dtype=torch.float32)]

        def __iter__(self) -> Any:
            return iter([("a", torch.zeros(1))])

    trainer.source = Source()

    def broken(first: Any, packets: Any) -> None:
        raise RuntimeError("connection closed")

    trainer._broadcast = broken
    with pytest.raises(TimeoutError):
        trainer.send_weights()
    trainer.shutdown()
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        late.set_exception(ValueError("nobody answers there"))
    assert caplog.records == []
    assert aborted


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_weights_on_cuda_are_sent_once_the_optimizer_is_through(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's NCCL engine reads them on streams of its own, which wait for nobody."""
    waited: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    device = torch.device(kind)
    engine: Any = SimpleNamespace(device=device)
    LockstepSource(engine).begin_round()
    assert waited == ([device] if kind == "cuda" else [])

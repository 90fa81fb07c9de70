"""The correction of vLLM's CPU runner: which generators it hides, and that it leaves a mended vLLM alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from vcppo.generator.vllm_engine.seeded_prefill import correct, is_faulty


class Buffer:
    def __init__(self, *rows: bool) -> None:
        self.np = np.asarray([*rows, True, True])  # what is behind num_reqs is of an earlier step


class Batch:
    def __init__(self, num_reqs: int) -> None:
        self.num_reqs = num_reqs
        self.generators = {row: torch.Generator().manual_seed(row) for row in range(num_reqs)}


def faulty() -> type[Any]:
    """The lines of vLLM 0.32's `GPUModelRunner` that matter, on real generators."""

    class Runner:
        def __init__(self, *discarded: bool) -> None:
            self.input_batch = Batch(len(discarded))
            self.discard_request_mask = Buffer(*discarded)

        def _sample(self, fail: bool = False) -> list[int]:
            if fail:
                raise RuntimeError("no memory")
            return [int(torch.randint(100, (), generator=gen)) for gen in self.input_batch.generators.values()]

        def _bookkeeping_sync(self) -> str:
            for i in np.nonzero(self.discard_request_mask.np[: self.input_batch.num_reqs])[0]:
                gen = self.input_batch.generators.get(int(i))
                if gen is not None:
                    gen.set_offset(gen.get_offset() - 4)
            return "booked"

    return Runner


class Mended:
    def _sample(self) -> None: ...

    def _bookkeeping_sync(self) -> None: ...


def test_a_generator_whose_token_is_thrown_away_is_neither_used_nor_wound_back() -> None:
    kind = faulty()
    assert correct(kind)
    runner = kind(False, True, False)
    before = {row: gen.get_state() for row, gen in runner.input_batch.generators.items()}
    assert len(runner._sample()) == 2
    assert runner._bookkeeping_sync() == "booked"
    after = runner.input_batch.generators
    assert after.keys() == {0, 1, 2}
    assert [torch.equal(after[row].get_state(), before[row]) for row in range(3)] == [False, True, False]


def test_generators_are_back_after_an_error() -> None:
    kind = faulty()
    correct(kind)
    runner = kind(True, True)
    with pytest.raises(RuntimeError, match="no memory"):
        runner._sample(fail=True)
    assert runner.input_batch.generators.keys() == {0, 1}


def test_it_is_done_once_and_not_to_a_mended_runner() -> None:
    kind = faulty()
    assert is_faulty(kind) and correct(kind) and not correct(kind)
    sample = Mended._sample
    assert not is_faulty(Mended) and not correct(Mended) and Mended._sample is sample


def test_this_vllm_needs_it() -> None:
    """When this fails, vLLM has mended it: generator/vllm_engine/seeded_prefill.py can go."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert is_faulty(GPUModelRunner)

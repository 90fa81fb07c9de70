"""The correction of vLLM's CPU runner: a turn's seed makes its generator anew, and a mended vLLM is left alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from vcppo.generator.vllm_engine.seeded_turns import correct


def old_runner() -> type[Any]:
    class Runner:
        device = torch.device("cpu")

        def _update_streaming_request(self, state: Any, seed: int | None) -> Any:
            state.sampling_params = SimpleNamespace(seed=seed)
            return state

    return Runner


class Mended:
    def _update_streaming_request(self, state: Any, seed: int) -> Any:
        state.generator = torch.Generator().manual_seed(seed)
        return state


def drawn(generator: torch.Generator) -> int:
    return int(torch.randint(10**9, (), generator=generator))


def test_a_turn_has_a_generator_of_its_own_seed() -> None:
    kind = old_runner()
    assert correct(kind) and not correct(kind)
    state = SimpleNamespace(generator=torch.Generator().manual_seed(1))
    drawn(state.generator)
    for seed in (7, 8):
        assert kind()._update_streaming_request(state, seed) is state
        assert drawn(state.generator) == drawn(torch.Generator().manual_seed(seed))


def test_without_a_seed_nothing_changes() -> None:
    kind = old_runner()
    assert correct(kind)
    before = torch.Generator()
    assert kind()._update_streaming_request(SimpleNamespace(generator=before), None).generator is before


def test_a_mended_runner_is_left_alone() -> None:
    before = Mended._update_streaming_request
    assert not correct(Mended) and Mended._update_streaming_request is before


def test_ours_is_still_needed() -> None:
    """When this fails vLLM has mended it: take the correction out."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    assert correct(type("Runner", (GPUModelRunner,), {}))

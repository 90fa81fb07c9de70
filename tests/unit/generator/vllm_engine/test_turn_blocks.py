"""Sessions of several turns have small blocks in the prefix cache on the CPU, where vLLM's own are large."""

from __future__ import annotations

from typing import Any

import pytest

from vcppo.common.config import VcppoConfig
from vcppo.generator.vllm_engine import engine
from vcppo.generator.vllm_engine.engine import Engine


def arguments(**sections: Any) -> dict[str, Any]:
    return Engine(VcppoConfig.model_validate({"model": {"path": "m"}, **sections}))._arguments()


@pytest.mark.parametrize(
    ("is_cpu", "task", "options", "expected"),
    [
        (True, "look_up", {}, 32),
        (True, "look_up", {"block_size": 64}, 64),  # the user's own goes before
        (True, "chain_arithmetic", {}, None),
        (False, "look_up", {}, None),
    ],
)
def test_an_environment_has_small_blocks_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, is_cpu: bool, task: str, options: dict[str, Any], expected: int | None
) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: is_cpu)
    found = arguments(task={"name": task}, generator={"engine_options": options})
    assert found.get("block_size") == expected


@pytest.mark.parametrize(
    ("is_cpu", "task", "more", "expected"),
    [
        (True, "look_up", {}, 8 + 4 + 8),  # as many may wait for their next turn as are sampled
        (True, "look_up", {"sampling": {"stop": ["."]}}, 12),
        (True, "look_up", {"generator": {"max_in_flight": 8, "engine_options": {"max_num_batched_tokens": 12}}}, 12),
        (True, "chain_arithmetic", {}, 12),
        (False, "look_up", {}, 12),
    ],
)
def test_sequences_that_wait_for_a_turn_have_places_of_their_own(
    monkeypatch: pytest.MonkeyPatch, is_cpu: bool, task: str, more: dict[str, Any], expected: int
) -> None:
    monkeypatch.setattr(engine, "on_cpu", lambda: is_cpu)
    found = arguments(**{"task": {"name": task}, "generator": {"max_in_flight": 8}, **more})
    assert found["max_num_seqs"] == expected

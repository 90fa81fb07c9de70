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

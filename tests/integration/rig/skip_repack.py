"""vLLM worker extension of one test: while the flag file exists, a tied LM head is not packed again after an update."""

import os
from pathlib import Path
from typing import Any

import vcppo.generator.vllm_engine.gloo_engine as gloo_engine

_find = gloo_engine.tied_heads


def _find_unless_flagged(model: Any) -> list[tuple[Any, Any]]:
    return [] if Path(os.environ["VCPPO_TEST_SKIP_REPACK"]).exists() else _find(model)


gloo_engine.tied_heads = _find_unless_flagged


class SkipRepack:
    """Nothing to add: importing this module is what counts."""

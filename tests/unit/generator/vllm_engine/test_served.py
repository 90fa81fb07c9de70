"""vLLM is asked for the architecture before an engine starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.rig.architectures import save_tiny
from vcppo.common.model_folder.stated_config import ModelError
from vcppo.generator.vllm_engine.served import require_served


def test_an_architecture_of_vllms_own_is_served(tmp_path: Path) -> None:
    require_served(str(save_tiny("mixtral", tmp_path)), trust_remote_code=False)


def test_what_vllm_cannot_serve_is_refused(tmp_path: Path) -> None:
    folder = save_tiny("rwkv", tmp_path)
    with pytest.raises(ModelError, match=r"vLLM can't serve RwkvForCausalLM .* choose a model") as caught:
        require_served(str(folder), trust_remote_code=False)
    assert "\n" not in str(caught.value)

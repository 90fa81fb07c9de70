"""The policy's tokenizer, as prompts are encoded and responses decoded with it."""

from __future__ import annotations

from typing import Any

from common.errors import VcppoError


def load_tokenizer(path: str, trust_remote_code: bool) -> Any:
    """transformers' tokenizer of a model folder or hub id. Raises VcppoError when it has none that can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise VcppoError(f"model.path: {path} has no tokenizer that can be loaded: {error}") from error

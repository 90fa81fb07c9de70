"""What a generator reads of the model folder besides weights: whether it is one, EOS tokens, the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.config.yaml_text import one_line
from common.errors import VcppoError


class ModelError(VcppoError):
    """``model.path`` can't be used; the text says why and what to give instead."""


def require_model(path: str) -> None:
    """Raise ModelError when ``path`` is neither a model folder nor a hub id whose config can be had.

    Checked before vLLM starts, which would take a minute to say so in a hundred lines.
    """
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"model.path: {path} has no config.json; give a Hugging Face model folder")
        if not any(folder.glob("*.safetensors")) and any(folder.glob("*.bin")):
            raise ModelError(f"model.path: {path} has pickled weights only, which can run code; save it as safetensors")
        return
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ModelError(f"model.path: no such folder: {path}; give a model folder or a hub id (owner/name)")
    from huggingface_hub import hf_hub_download

    try:
        hf_hub_download(path, "config.json", etag_timeout=10)
    except Exception as error:  # a dozen kinds: offline, no such repository, gated, ...
        raise ModelError(f"model.path: {path} is no folder, and no hub model that can be read: {error}") from error


def end_tokens(path: str, trust_remote_code: bool = False) -> list[int]:
    """EOS token ids: of the generation config, else the model config, else the tokenizer; ModelError without any."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    for loader in (GenerationConfig, AutoConfig, AutoTokenizer):
        try:
            found = getattr(loader.from_pretrained(path, trust_remote_code=trust_remote_code), "eos_token_id", None)
        except Exception:  # noqa: BLE001  (nearly anything, and a folder needs only one of the three)
            continue
        if found is not None:
            return [found] if isinstance(found, int) else sorted(found)
    raise ModelError(f"model.path: {path} names no eos_token_id in its generation config, config or tokenizer")


def load_tokenizer(path: str, trust_remote_code: bool) -> Any:
    """transformers' tokenizer of a model folder or hub id. Raises ModelError when it has none that can be loaded."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except Exception as error:  # a broken folder makes tokenizers raise nearly anything, bare Exception included
        raise ModelError(f"model.path: {path} has no tokenizer that can be loaded: {one_line(error)}") from error

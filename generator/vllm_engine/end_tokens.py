"""What a generator reads of the model folder besides weights: whether it is one, EOS tokens, the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog

from vcppo.common.model_folder.stated_config import ModelError, read_stated
from vcppo.common.model_folder.tokenizer import load_tokenizer

__all__ = ["ModelError", "end_tokens", "load_tokenizer", "require_model"]

log = structlog.get_logger(__name__)


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
    """All token ids that end a response, ascending: of the generation config, the config and the tokenizer together.

    vLLM with a tokenizer of its own stops at the same ones. Only what the folder's files say counts: where config.json
    names none, transformers' classes have defaults, and a token that means something else would end responses.

    Raises:
        ModelError: the folder names none.
    """
    found = {
        *_ids_of(read_stated(path, "generation_config.json").get("eos_token_id")),
        *_config_end_tokens(path),
        *_tokenizer_end_token(path, trust_remote_code),
    }
    if not found:
        raise ModelError(
            f"model.path: {path} names no eos_token_id in its generation_config.json, config.json or tokenizer, so a "
            'response could never end: add "eos_token_id" to its generation_config.json'
        )
    return sorted(found)


def _config_end_tokens(path: str) -> list[int]:
    config = read_stated(path, "config.json")
    text = config.get("text_config")
    return _ids_of(config.get("eos_token_id")) + (_ids_of(text.get("eos_token_id")) if isinstance(text, dict) else [])


def _tokenizer_end_token(path: str, trust_remote_code: bool) -> list[int]:
    """Its EOS, if the files name it or have such a token: a class's default may be in no vocabulary."""
    try:
        tokenizer = load_tokenizer(path, trust_remote_code)
    except ModelError as error:
        log.debug("no_tokenizer_for_end_tokens", error=str(error))  # whoever needs the tokenizer says so
        return []
    token = tokenizer.eos_token
    stated = {**read_stated(path, "special_tokens_map.json"), **read_stated(path, "tokenizer_config.json")}.get(
        "eos_token"
    )
    is_unknown = tokenizer.eos_token_id == tokenizer.unk_token_id and token != tokenizer.unk_token
    if token is None or is_unknown or (stated is None and token not in _added_tokens(path)):
        return []
    return _ids_of(tokenizer.eos_token_id)


def _added_tokens(path: str) -> set[str]:
    added = read_stated(path, "tokenizer.json").get("added_tokens")
    return {str(each.get("content")) for each in added if isinstance(each, dict)} if isinstance(added, list) else set()


def _ids_of(value: Any) -> list[int]:
    """An id, a list of them, or nothing; negative ids mean none."""
    values = value if isinstance(value, list | tuple) else [value]
    return [each for each in values if isinstance(each, int) and not isinstance(each, bool) and each >= 0]

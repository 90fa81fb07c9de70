"""Whether vLLM can serve a model, known before an engine starts."""

from __future__ import annotations

from typing import Any

import structlog

from vcppo.common.model_folder.stated_config import ModelError, read_stated
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)


def require_served(path: str, trust_remote_code: bool, options: dict[str, Any] | None = None) -> None:
    """Raise ModelError when vLLM has no implementation of the model's architecture.

    One of vLLM's own takes no time to find. Else vLLM is asked whether its generic one, on top of transformers, will
    do: that takes up to half a minute, and leaves a warning.

    Args:
        options: for `EngineArgs`, as `generator.engine_options`.
    """
    from vllm import EngineArgs, ModelRegistry

    stated = read_stated(path, "config.json").get("architectures") or []
    architectures = [str(name) for name in stated] if isinstance(stated, list) else []
    if set(architectures) & set(ModelRegistry.get_supported_archs()):
        return
    try:
        asked = {"skip_tokenizer_init": True, "trust_remote_code": trust_remote_code, **(options or {})}
        model_config = EngineArgs(model=path, **asked).create_model_config()
    except Exception as error:  # vLLM raises many kinds here
        reason = one_line(error).partition(" Supported architectures")[0]  # a list of hundreds
        raise ModelError(
            f"model.path: {path}: vLLM can't serve {', '.join(architectures) or 'a model without architectures'} "
            f"({reason}): choose a model of an architecture that vLLM lists as supported"
        ) from error
    log.warning(
        "generic_implementation",
        model=path,
        architectures=architectures,
        implementation=str(model_config.architecture),
        effect="vLLM runs this model on top of transformers, more slowly than its own architectures",
    )

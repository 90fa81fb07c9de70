"""What vLLM makes of a model and its settings before it loads anything."""

from __future__ import annotations

from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.generator.vllm_engine.end_tokens import require_model
from vcppo.generator.vllm_engine.engine import Engine, EngineError, register, transfer_backend
from vcppo.generator.vllm_engine.engine_start import set_environment, start_failure


class EngineFacts(NamedTuple):
    """Settings as vLLM resolved them.

    Attributes:
        version: of vLLM.
        architecture: the class it will run.
        dtype: of weights.
        max_model_len: longest sequence.
        transfer: backend of weight updates.
        is_fallback: it runs transformers' own code for want of an implementation of its own, which is slower.
    """

    version: str
    architecture: str
    dtype: str
    max_model_len: int
    transfer: str
    is_fallback: bool


def resolve(config: VcppoConfig) -> EngineFacts:
    """Have vLLM check and resolve what an `Engine` would be started with. Raises EngineError with its reason."""
    require_model(config.model.path)
    set_environment(config)
    import vllm

    register()
    try:
        found = vllm.EngineArgs(**Engine(config)._arguments()).create_engine_config().model_config
    except Exception as error:  # vLLM raises many kinds here
        raise EngineError(start_failure(config, config.model.path, error)) from error
    return EngineFacts(
        version=vllm.__version__,
        architecture=str(found.architecture),
        dtype=str(found.dtype).removeprefix("torch."),
        max_model_len=int(found.max_model_len),
        transfer=transfer_backend(config),
        is_fallback=str(found._model_info.architecture).startswith("Transformers"),
    )

"""A transformers model from a folder or hub id, with everything refused here that would only fail or mislead later."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from vcppo.common.errors import VcppoError
from vcppo.common.files.room import exhausted, shortage_of
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.kernels.attention import PACKED_ATTENTION
from vcppo.learner.models.model_folder import check_weights, stored_dtype
from vcppo.learner.models.wire_weights import WireWeights
from vcppo.learner.packing_proof.proof import SUGGESTION, ModelRefused, Reader, prove

# Settings that bend logits before the softmax; ignoring one would train on wrong log-probs.
_LOGIT_SETTINGS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
# Attributes of modules that make a forward random. (PhiMoE's router_jitter_noise is no noise but a threshold.)
_RANDOM = re.compile(r"drop|^(input_)?jitter_noise$")


def from_pretrained(
    reader: Reader, path: str | Path, trust_remote_code: bool, max_tokens: int | None, *, as_stored: bool, **kwargs: Any
) -> tuple[PreTrainedModel, list[str], bool]:
    """The model, the names of parameters its files don't hold, and whether packing has been proved on a tiny instance.

    Args:
        as_stored: in the type of its files, whatever `dtype` says, where that is one: then its weights lie in the
            mapped files and take no memory of their own. Whoever asks for it casts them.

    Raises:
        VcppoError: no such model, or one that can't be computed, trained or sent to generators here.
    """
    with quiet_transformers():
        try:
            config = read_config(path, trust_remote_code)
            if "num_labels" in kwargs:
                config.num_labels = 1  # the proof is of what is below the head
            _check_settings(path, config, max_tokens)
            check_weights(path, reader.auto_class, config, trust_remote_code)
            proved = prove(reader, config, str(path), trust_remote_code=trust_remote_code)
            if as_stored:
                kwargs["dtype"] = stored_dtype(path) or kwargs["dtype"]
            model, info = reader.auto_class.from_pretrained(
                str(path),
                attn_implementation=PACKED_ATTENTION,
                trust_remote_code=trust_remote_code,
                use_safetensors=True,
                output_loading_info=True,
                **kwargs,
            )
        except VcppoError:
            raise
        except Exception as error:  # a foreign or broken folder makes transformers raise nearly anything
            raise unusable(path, error) from error
    WireWeights(model)
    return model, sorted(info["missing_keys"]), proved


def tree_over(
    reader: Reader, model: PreTrainedModel, backbone: nn.Module, num_labels: int
) -> tuple[PreTrainedModel, bool]:
    """Another kind of model with this `backbone` and a new head, and whether packing has been proved for it.

    Args:
        model: the one that `backbone` is of, loaded by `from_pretrained`. No number of it is copied.

    Raises:
        VcppoError: the other kind can't be made, or has more of its own than ``score``.
    """
    path, trust = model.name_or_path, model.is_remote_code()
    config = deepcopy(model.config)
    config.num_labels = 1
    try:
        proved = prove(reader, config, path, trust_remote_code=trust)
        config.num_labels = num_labels
        with torch.device("meta"):
            made = reader.auto_class.from_config(
                config, attn_implementation=PACKED_ATTENTION, trust_remote_code=trust, dtype=model.dtype
            )
    except VcppoError:
        raise
    except Exception as error:  # foreign code makes transformers raise nearly anything
        raise unusable(path, error) from error
    made.name_or_path = path
    setattr(made, made.base_model_prefix, backbone)
    made.score = nn.Linear(made.score.in_features, num_labels, bias=made.score.bias is not None, dtype=model.dtype)
    if left := [name for name, each in (*made.named_parameters(), *made.named_buffers()) if each.is_meta]:
        raise ModelRefused(
            f"model {path}: {type(made).__name__} has {left[0]} beside its backbone and its head, so a critic can't"
            " share the policy's backbone: set lora.rank = null, or choose another model.path"
        )
    return made, proved


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars, and no table of missing weights: both are reported in our own words."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def read_config(path: str | Path, trust_remote_code: bool) -> Any:
    """The model's config. Raises VcppoError."""
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # a foreign or broken folder makes transformers raise nearly anything
        raise unusable(path, error) from error


def refuse_missing(path: str | Path, missing: list[str]) -> None:
    """Raise ModelRefused when weights would start at random."""
    if missing:
        raise ModelRefused(
            f"model {str(path)!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}, ...), which would "
            "start at random; give a folder whose config.json and safetensors belong together"
        )


def prepare(model: PreTrainedModel, recomputed_every: int = 0) -> None:
    """No randomness: pi_old and pi must be the same function of the weights, or the ratio is noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and _RANDOM.search(name):
                setattr(module, name, 0.0)
    if recomputed_every:
        fewer = {"every_n_layers": recomputed_every} if recomputed_every > 1 else {}
        try:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False}, **fewer)
        except ValueError as error:
            raise ModelRefused(
                f"model {model.name_or_path}: {type(model).__name__} has no gradient checkpointing: "
                "set learner.gradient_checkpointing = false, or choose another model.path"
            ) from error
    model.train()


def unusable(path: str | Path, error: Exception) -> VcppoError:
    """Why this is no model, and what to give instead; a full disk or memory is no fault of the model."""
    if (shortage := shortage_of(error)) is not None:
        return exhausted(shortage, f"reading model {path}")
    reason = one_line(error) or type(error).__name__
    if (isinstance(error, KeyError) and PACKED_ATTENTION in reason) or "attn_implementation" in reason:
        return ModelRefused(
            f"model {path}: its attention is its own and can't be given packed sequences ({reason}); {SUGGESTION}"
        )
    if "Unrecognized configuration class" in reason and "SequenceClassification" in reason:
        return ModelRefused(
            f"model {path}: transformers has no critic for this architecture (no ForSequenceClassification class): set "
            "algorithm.advantage_estimator=leave_one_out and value_pretraining.num_trajectories=0, which need none, or "
            "choose another model.path"
        )
    return ModelRefused(
        f"model path {str(path)!r} can't be loaded ({reason}); give a folder with config.json and safetensors, "
        "such as the one `vcppo sft` writes, or a Hugging Face id that is cached or can be downloaded"
    )


def _check_settings(path: str | Path, config: Any, max_tokens: int | None) -> None:
    """Refuse, before any weight is read, what config.json alone tells."""
    text = config.get_text_config()
    for name, neutral in _LOGIT_SETTINGS.items():
        value = getattr(text, name, neutral)
        if value is not None and value != neutral:
            raise ModelRefused(
                f"model {path}: {name}={value} changes the logits and is not supported; choose another model.path"
            )
    if getattr(config, "quantization_config", None) is not None:
        raise ModelRefused(
            f"model {path}: its weights are quantised (quantization_config in config.json) and can't be trained: give "
            "the bfloat16 or float32 model it was made from"
        )
    _check_generation_config(path)
    for rope in _rope_settings(text):
        _check_rope(path, text, rope, max_tokens)


def _check_generation_config(path: str | Path) -> None:
    """What transformers would not even load; what it would not save, `vcppo.learner.models.saving` mends."""
    if not (Path(path) / "generation_config.json").is_file():
        return
    try:
        GenerationConfig.from_pretrained(str(path))
    except Exception as error:  # its validator raises many kinds
        raise ModelRefused(
            f"model {path}: its generation_config.json is not valid ({one_line(error)}): correct it, or delete all but "
            "its token ids"
        ) from error


def _rope_settings(config: Any) -> list[dict[str, Any]]:
    """One, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None)
    if not isinstance(rope, dict):
        return []
    return [rope, *(each for each in rope.values() if isinstance(each, dict))]


def _check_rope(path: str | Path, config: Any, rope: dict[str, Any], max_tokens: int | None) -> None:
    """Rotary frequencies that depend on a sequence's length would depend on the longest one in the pack."""
    kind = rope.get("rope_type", rope.get("type"))
    if kind == "dynamic":
        raise ModelRefused(
            f"model {path}: rope_type=dynamic changes rotary frequencies with the length of a sequence, and vLLM "
            "does it otherwise than transformers; choose another model.path, or a fixed rope_type (yarn, linear)"
        )
    if kind != "longrope":
        return
    limit = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    limit = limit or config.max_position_embeddings
    if max_tokens is None or max_tokens > limit:
        given = "" if max_tokens is None else f" generator.max_model_len = {max_tokens};"
        raise ModelRefused(
            f"model {path}: rope_type=longrope has other rotary frequencies for sequences beyond {limit} tokens;"
            f"{given} set generator.max_model_len to at most {limit}, or choose another model.path"
        )

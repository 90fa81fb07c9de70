"""Policy and critic: transformers models over packed batches, without padding, masks or full logits.

Both stay ordinary transformers models inside (`hf_model`), with Hugging Face parameter names, so that what is saved
here loads in transformers and vLLM:

- the policy's ``lm_head`` becomes a `LogProbHead` that owns the same weight (tied or not). Being a module of its own
  lets ZeRO-3 gather the weight around its forward and backward;
- the critic is a ``...ForSequenceClassification`` with one label, the very form of a Hugging Face reward model, so
  "a critic of ours" and "a reward model" load by the same path; its ``score`` becomes a `ValueHead`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import logging as transformers_logging

from common.config.yaml_text import one_line
from common.errors import VcppoError
from learner.attention import PACKED_ATTENTION, attention_arguments
from learner.log_probs import chunked_log_probs
from learner.model_folder import check_weights
from learner.packing import PackedBatch

# Settings that bend logits before the softmax; ignoring one would train on wrong log-probs.
_LOGIT_SETTINGS = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}

HeadT = TypeVar("HeadT", bound=nn.Linear)


class PolicyOutput(NamedTuple):
    """Both ``[A]`` float32, nats; entropy has no gradient."""

    log_probs: Tensor
    entropy: Tensor


class CriticOutput(NamedTuple):
    """float32: ``values [A]`` of the state before each action, ``final_values [S]`` at each sequence's last token."""

    values: Tensor
    final_values: Tensor


class LogProbHead(nn.Linear):
    """The output layer: plain logits as usual, log-probs of `targets` in chunks when they are given."""

    chunk_tokens: int = 256
    chunk_vocab: int = 8192

    def forward(self, input: Tensor, targets: Tensor | None = None, temperature: float = 1.0) -> Any:
        """``input [A, H]`` and ``targets [A]`` to (log_probs, entropy); without targets, logits."""
        if targets is None:
            return super().forward(input)
        return tuple(
            chunked_log_probs(
                input,
                self.weight,
                targets,
                temperature=temperature,
                bias=self.bias,
                chunk_tokens=self.chunk_tokens,
                chunk_vocab=self.chunk_vocab,
            )
        )


class ValueHead(nn.Linear):
    """Hidden state to a value, computed in float32 whatever the weights' type."""

    def forward(self, input: Tensor) -> Tensor:
        """``[..., H]`` to ``[..., 1]`` float32."""
        bias = self.bias.float() if self.bias is not None else None
        return functional.linear(input.float(), self.weight.float(), bias)


class PolicyModel(nn.Module):
    """pi(a|s) of packed trajectories."""

    def __init__(self, hf_model: PreTrainedModel, *, chunk_tokens: int = 256, chunk_vocab: int = 8192) -> None:
        super().__init__()
        head = _retype(_linear(hf_model, "lm_head"), LogProbHead)
        head.chunk_tokens, head.chunk_vocab = chunk_tokens, chunk_vocab
        self.hf_model = hf_model

    def forward(self, batch: PackedBatch, temperature: float = 1.0) -> PolicyOutput:
        """Log-prob of every action, from the hidden state one token before it in the same sequence."""
        hidden = _hidden_states(self.hf_model, batch)
        log_probs, entropy = self.hf_model.lm_head(hidden[batch.state_index], batch.actions, temperature)
        return PolicyOutput(log_probs, entropy)


class CriticModel(nn.Module):
    """V(s) of packed trajectories."""

    def __init__(self, hf_model: PreTrainedModel) -> None:
        super().__init__()
        _retype(_linear(hf_model, "score"), ValueHead)
        self.hf_model = hf_model

    def forward(self, batch: PackedBatch) -> CriticOutput:
        """Values where they are needed only: before each action, and at each sequence's end."""
        hidden = _hidden_states(self.hf_model, batch)
        wanted = torch.cat([batch.state_index, batch.last_token_index])
        values = self.hf_model.score(hidden[wanted])[:, 0]
        return CriticOutput(*values.split([batch.num_actions, len(batch.last_token_index)]))


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    gradient_checkpointing: bool = False,
    chunk_tokens: int = 256,
    chunk_vocab: int = 8192,
) -> PolicyModel:
    """A causal language model from a folder or a Hugging Face id.

    Every rank holds the whole model in host memory while loading, also under ZeRO-3 (which shards it afterwards).

    Raises:
        VcppoError: no such model, or one whose logits or attention can't be computed here; says what to do.
    """
    model, missing = _from_pretrained(AutoModelForCausalLM, path, trust_remote_code, dtype=dtype)
    _refuse_missing(path, missing)
    _prepare(model, gradient_checkpointing)
    return PolicyModel(model, chunk_tokens=chunk_tokens, chunk_vocab=chunk_vocab)


def load_critic(
    path: str | Path,
    *,
    init: str = "policy",
    dtype: torch.dtype = torch.float32,
    trust_remote_code: bool = False,
    gradient_checkpointing: bool = False,
) -> CriticModel:
    """A critic.

    Args:
        path: the policy's path (architecture and, for init=policy, the backbone's weights).
        init: ``policy``: the policy's backbone with a new head of zeros, so V starts at 0 everywhere, in the middle
            of rewards of +-1, instead of at random. Otherwise a folder or id with a one-label ``score`` head: a critic
            saved by `save_model`, or a Hugging Face reward model.

    Raises:
        VcppoError: no such model, or it has no ``score`` head with one output.
    """
    source = path if init == "policy" else init
    model, missing = _from_pretrained(
        AutoModelForSequenceClassification, source, trust_remote_code, dtype=dtype, num_labels=1
    )
    new_head = any(name.startswith("score.") for name in missing)
    _refuse_missing(source, [name for name in missing if not name.startswith("score.")])
    if init == "policy":
        nn.init.zeros_(_linear(model, "score").weight)
    elif new_head:
        raise VcppoError(
            f"critic.init={init}: this model has no `score.weight`, so it is not a critic or a reward model; "
            "give a folder that has one, or critic.init=policy for a new value head"
        )
    _prepare(model, gradient_checkpointing)
    return CriticModel(model)


def vocabulary_size(path: str | Path, trust_remote_code: bool) -> int:
    """How many tokens the model has an embedding for. Raises VcppoError as `load_policy` does."""
    config = _config(path, trust_remote_code)
    try:
        return int(config.get_text_config().vocab_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise VcppoError(f"model path {str(path)!r}: config.json has no vocab_size: choose another model") from error


def save_model(
    model: PolicyModel | CriticModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write config and safetensors that transformers (and, of a policy, vLLM) load.

    Args:
        state_dict: Hugging Face names to full tensors, from `TrainEngine.gather_full_state_dict`; needed where the
            model's own parameters are sharded. None: the model's own.
    """
    state = {k: v.detach().cpu().contiguous() for k, v in state_dict.items()} if state_dict is not None else None
    model.hf_model.save_pretrained(str(folder), state_dict=state)


def _hidden_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """``[N, H]`` last hidden states of the backbone."""
    output = model.base_model(
        input_ids=batch.token_ids[None],
        position_ids=batch.position_ids[None],
        use_cache=False,
        **attention_arguments(batch),
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _from_pretrained(
    auto_class: Any, path: str | Path, trust_remote_code: bool, **kwargs: Any
) -> tuple[PreTrainedModel, list[str]]:
    """The model, and the names of parameters its files don't hold (transformers' own table of them is kept quiet)."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        config = _config(path, trust_remote_code)
        _check_logits(path, config)
        check_weights(path, auto_class, config)
        model, info = auto_class.from_pretrained(
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
        raise VcppoError(_unusable(path, error)) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    return model, sorted(info["missing_keys"])


def _refuse_missing(path: str | Path, missing: list[str]) -> None:
    if missing:
        raise VcppoError(
            f"model {str(path)!r} lacks {len(missing)} of its weights ({', '.join(missing[:3])}, ...), which would "
            "start at random; give a folder whose config.json and safetensors belong together"
        )


def _check_logits(path: str | Path, config: Any) -> None:
    """Refuse, before any weight is read, what would silently give other log-probs than the model's own."""
    for name, neutral in _LOGIT_SETTINGS.items():
        value = getattr(config, name, neutral)
        if value is not None and value != neutral:
            raise VcppoError(
                f"model {path}: {name}={value} changes the logits and is not supported; choose another model.path"
            )


def _config(path: str | Path, trust_remote_code: bool) -> Any:
    try:
        return AutoConfig.from_pretrained(str(path), trust_remote_code=trust_remote_code)
    except Exception as error:  # a foreign or broken folder makes transformers raise nearly anything
        raise VcppoError(_unusable(path, error)) from error


def _unusable(path: str | Path, error: Exception) -> str:
    reason = one_line(error) or type(error).__name__
    return (
        f"model path {str(path)!r} can't be loaded ({reason}); give a folder with config.json and safetensors, "
        "such as the one `vcppo sft` writes, or a Hugging Face id that is cached or can be downloaded"
    )


def _prepare(model: PreTrainedModel, gradient_checkpointing: bool) -> None:
    """No dropout: pi_old and pi must be the same function of the weights, or the ratio is noise."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    layer = getattr(model, name, None)
    if not isinstance(layer, nn.Linear):
        raise VcppoError(
            f"{type(model).__name__} has no linear layer `{name}`; choose another model.path "
            "(Qwen2, Qwen3, Llama, Mistral work)"
        )
    return layer


def _retype(layer: nn.Linear, head_class: type[HeadT]) -> HeadT:
    """Give a layer another forward. In place: its weight stays the same Parameter, tied as before, with its name."""
    layer.__class__ = head_class
    assert isinstance(layer, head_class)
    return layer

"""Proof, before training, that a model computes in a pack what it computes alone, and what transformers computes.

Recurrent and linear attention, Mamba, short convolutions and token shifts carry state from one packed sequence into the
next; chunked masks, sinks, biases and length-dependent positions ask for what packed attention does not do; multipliers
bend the logits. There are a hundred such architectures, and new ones every month, so nothing is looked up in a list: a
tiny instance of the model's own config is run, alone, packed, and by plain transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.text.yaml_text import one_line
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.kernels.attention import PACKED_ATTENTION
from vcppo.learner.packing_proof.tiny_instance import VOCABULARY, randomise, tiny_configs

TOLERANCE = 2e-3  # nats, or units of value, in float32: rounding alone stays below 1e-4
_LENGTHS = ((3, 3), (7, 25), (2, 11))  # prompt and response: both sides of tiny_instance.WINDOW
_PLAIN = ("eager", "sdpa")
SUGGESTION = "choose another model.path (Llama, Mistral, Qwen2, Qwen3, Gemma, Phi-3, OLMo 2 and Mixtral work)"

Wrap = Callable[[PreTrainedModel], nn.Module]
ReadPacked = Callable[[nn.Module, Sequence[Trajectory]], list[Tensor]]
ReadPlain = Callable[[PreTrainedModel, Tensor, int], Tensor]


class ModelRefused(VcppoError):
    """The learner can't compute this model; the text says which part of it, and what to do."""

    exit_code = EXIT_REFUSED


@dataclass(frozen=True)
class Reader:
    """How a policy or a critic is made of a transformers model, and what is compared of it.

    Attributes:
        wrap: the module of ours around it.
        packed: one array per trajectory, from one packed forward.
        plain: the same of one sequence ``[1, N]`` with ``prompt`` tokens of prompt, as transformers computes it.
    """

    auto_class: Any
    wrap: Wrap
    packed: ReadPacked
    plain: ReadPlain


def prove(reader: Reader, config: Any, path: str, **how: Any) -> bool:
    """False when no tiny instance could be made, and nothing is known.

    Args:
        how: for `from_config`, such as ``trust_remote_code``.

    Raises:
        ModelRefused: packed forward fails, or differs; names the model, the layer and the remedy.
    """
    with torch.random.fork_rng(devices=[]):
        for small in tiny_configs(config, reader.auto_class, **how):
            torch.manual_seed(0)
            if (made := _plain_instance(reader, small, how)) is not None:
                _compare(reader, small, path, how, *made)
                return True
    return False


def _plain_instance(reader: Reader, config: Any, how: dict[str, Any]) -> tuple[PreTrainedModel, list[Tensor]] | None:
    """The tiny model and what transformers makes of each trajectory; None when transformers can't run it so small."""
    vocabulary = min(VOCABULARY, int(config.get_text_config().vocab_size))
    for attention in _PLAIN:
        try:
            model = reader.auto_class.from_config(config, attn_implementation=attention, **how).float().eval()
            randomise(model)
            with torch.no_grad():
                values = [reader.plain(model, *token_ids(t)) for t in _trajectories(vocabulary)]
        except Exception:  # noqa: BLE001, S112  (transformers' own code, at sizes it was not written for)
            continue
        if all(bool(torch.isfinite(value).all()) for value in values):
            return model, values
    return None


def _compare(
    reader: Reader, config: Any, path: str, how: dict[str, Any], plain: PreTrainedModel, expected: list[Tensor]
) -> None:
    """Raise ModelRefused unless packed, alone and plain are the same."""
    trajectories = _trajectories(min(VOCABULARY, int(config.get_text_config().vocab_size)))
    try:
        model = reader.auto_class.from_config(config, attn_implementation=PACKED_ATTENTION, **how).float()
        model.load_state_dict(plain.state_dict())
        module = reader.wrap(model)
        packed, again = (reader.packed(module, trajectories) for _ in range(2))
        alone = [reader.packed(module, [each])[0] for each in trajectories]
    except Exception as error:
        reason = str(error) if isinstance(error, VcppoError) else f"{type(error).__name__}: {one_line(error)}"
        raise ModelRefused(
            f"model {path}: {config.model_type} can't be run on packed sequences ({reason}); {SUGGESTION}"
        ) from error
    if (gap := largest_gap(packed, again)) > TOLERANCE:
        raise ModelRefused(
            f"model {path}: {config.model_type} is random in training: two forwards differ by {gap:.2g}, so old and "
            "new log-probs could not be compared; set dropout, jitter and noise to 0 in its config.json, or "
            f"{SUGGESTION}"
        )
    if (gap := largest_gap(alone, packed)) > TOLERANCE:
        raise ModelRefused(
            f"model {path}: {config.model_type} carries state from one packed sequence into the next, in "
            f"{first_difference(module, model, trajectories)}; the results of a sequence change by {gap:.2g} with what "
            f"stands before it: {SUGGESTION}"
        )
    if (gap := largest_gap(packed, expected)) > TOLERANCE:
        raise ModelRefused(
            f"model {path}: packed results of {config.model_type} differ from transformers' own by {gap:.2g} (its "
            "attention mask, its positions, its outputs or its training mode have a form that is not reproduced here); "
            f"{SUGGESTION}"
        )


def largest_gap(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Largest absolute difference; infinite when anything is not a number."""
    gaps = [float((a - b).abs().max()) for a, b in zip(left, right, strict=True)]
    return max(gap if np.isfinite(gap) else float("inf") for gap in gaps)


def first_difference(module: nn.Module, model: PreTrainedModel, trajectories: Sequence[Trajectory]) -> str:
    """The first module, in order of computing, whose result for the last trajectory depends on those before it."""
    alone = _outputs(module, model, trajectories[-1:])
    packed = _outputs(module, model, trajectories)
    length = trajectories[-1].num_tokens
    for name, output in alone.items():
        whole = packed.get(name)
        if whole is None or output.ndim < 2 or output.ndim != whole.ndim:
            continue
        axis = next((i for i in range(output.ndim) if output.shape[i] == length != whole.shape[i]), None)
        if axis is None:
            continue
        tail = whole.narrow(axis, whole.shape[axis] - length, length)
        if tail.shape == output.shape and not torch.allclose(tail, output, atol=1e-4, rtol=1e-3):
            return _mixer(model, name)
    return "a layer that could not be told"


def _outputs(module: nn.Module, model: PreTrainedModel, trajectories: Sequence[Trajectory]) -> dict[str, Tensor]:
    """Of every module's forward, its first tensor, by the module's name, in the order they finish."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, Tensor) and name not in found:
                found[name] = first.detach().float()

        return hook

    handles = [each.register_forward_hook(keep(name)) for name, each in model.named_modules() if name]
    try:
        with torch.no_grad():
            module(build_packed(trajectories))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _mixer(model: PreTrainedModel, name: str) -> str:
    """The layer's part that holds this module: ``model.layers.0.mixer (class)``, with the module itself if deeper."""
    parts = name.split(".")
    number = next((i for i, part in enumerate(parts) if part.isdigit()), None)
    outer = ".".join(parts[: number + 2]) if number is not None else name
    shown = f"{outer} ({type(model.get_submodule(outer)).__name__}"
    inner = type(model.get_submodule(name)).__name__
    return f"{shown}, its {parts[-1]}: {inner})" if outer != name else f"{shown})"


@cache
def _trajectories(vocabulary: int) -> tuple[Trajectory, ...]:
    """Random tokens, the same at every call."""
    rng = np.random.default_rng(0)
    return tuple(
        as_trajectory(*(rng.integers(min(3, vocabulary - 1), vocabulary, n).astype(np.int32) for n in lengths))
        for lengths in _LENGTHS
    )


def token_ids(trajectory: Trajectory) -> tuple[Tensor, int]:
    """``[1, N]`` int64 token ids, and how many of them are prompt."""
    ids = np.concatenate([trajectory.prompt_token_ids, trajectory.response_token_ids]).astype(np.int64)
    return torch.from_numpy(ids)[None], len(trajectory.prompt_token_ids)

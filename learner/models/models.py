"""Policy and critic: transformers models over packed batches, without padding, masks or full logits.

Both stay ordinary transformers models inside (`hf_model`), with Hugging Face parameter names, so that what is saved
here loads in transformers and vLLM:

- the policy's ``lm_head`` becomes a `LogProbHead` that owns the same weight (tied or not). Being a module of its own
  lets ZeRO-3 gather the weight around its forward and backward;
- the critic is a ``...ForSequenceClassification`` with one label, the very form of a Hugging Face reward model, so
  "a critic of ours" and "a reward model" load by the same path; its ``score`` becomes a
  `vcppo.learner.models.value_head.ValueHead`. A head with bins has a label for each.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.packing import PackedBatch, build_packed
from vcppo.learner.kernels.attention import attention_arguments
from vcppo.learner.kernels.log_probs import chunked_log_probs
from vcppo.learner.models.adapters import share, without_adapters
from vcppo.learner.models.merged_weights import is_adapter
from vcppo.learner.models.model_loading import from_pretrained, prepare, read_config, refuse_missing, tree_over
from vcppo.learner.models.saving import make_saveable
from vcppo.learner.models.surprise import add_surprise_input, check_stated_input, embedded, surprise_input
from vcppo.learner.models.value_head import ValueHead, check_stated_head, state_head, value_of
from vcppo.learner.packing_proof.packing_probe import probe
from vcppo.learner.packing_proof.proof import SUGGESTION, ModelRefused, Reader

HeadT = TypeVar("HeadT", bound=nn.Linear)


class PolicyOutput(NamedTuple):
    """Both ``[A]`` float32, nats; entropy has a gradient only if it was asked for."""

    log_probs: Tensor
    entropy: Tensor


class CriticOutput(NamedTuple):
    """float32: ``values [A]`` of the state before each action, ``last_values [S]`` at each sequence's last token.

    ``logits [A, m]`` are what the values were made of: over the bins, or the values themselves (m = 1) without bins.
    """

    values: Tensor
    last_values: Tensor
    logits: Tensor


class LogProbHead(nn.Linear):
    """The output layer: plain logits as usual, log-probs of `targets` in chunks when they are given."""

    chunk_tokens: int | None = None
    chunk_vocab: int | None = None

    def forward(
        self,
        input: Tensor,
        targets: Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> Any:
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
                entropy_gradient=entropy_gradient,
                chunk_tokens=self.chunk_tokens,
                chunk_vocab=self.chunk_vocab,
            )
        )


class PolicyModel(nn.Module):
    """pi(a|s) of packed trajectories."""

    def __init__(
        self, hf_model: PreTrainedModel, *, chunk_tokens: int | None = None, chunk_vocab: int | None = None
    ) -> None:
        super().__init__()
        head = _retype(_linear(hf_model, "lm_head"), LogProbHead)
        head.chunk_tokens, head.chunk_vocab = chunk_tokens, chunk_vocab
        self.hf_model = hf_model

    def forward(self, batch: PackedBatch, temperature: float = 1.0, entropy_gradient: bool = False) -> PolicyOutput:
        """Log-prob of every action, from the hidden state one token before it in the same sequence."""
        hidden = _hidden_states(self.hf_model, batch)
        states, actions = hidden[batch.state_index], batch.actions
        log_probs, entropy = self.hf_model.lm_head(states, actions, temperature, entropy_gradient)
        return PolicyOutput(log_probs, entropy)


class CriticModel(nn.Module):
    """V(s) of packed trajectories."""

    def __init__(self, hf_model: PreTrainedModel, bins: ValueBins | None = None) -> None:
        """`bins` of a head that gives a distribution; None: a number."""
        super().__init__()
        _retype(_linear(hf_model, "score"), ValueHead).bins = bins
        self.hf_model = hf_model

    def forward(self, batch: PackedBatch) -> CriticOutput:
        """Values where they are needed only: before each action, and at each sequence's end."""
        added = surprise_input(self.hf_model)
        hidden = _hidden_states(
            self.hf_model,
            batch,
            None if added is None else embedded(self.hf_model, added, batch.token_ids, batch.surprise),
        )
        wanted = torch.cat([batch.state_index, batch.last_token_index])
        logits = self.hf_model.score(hidden[wanted])
        values = value_of(self.hf_model.score, logits)
        at_actions, at_ends = values.split([batch.num_actions, len(batch.last_token_index)])
        return CriticOutput(at_actions, at_ends, logits[: batch.num_actions])


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    as_stored: bool = False,
    trust_remote_code: bool = False,
    recomputed_every: int = 0,
    chunk_tokens: int | None = None,
    chunk_vocab: int | None = None,
    max_tokens: int | None = None,
) -> PolicyModel:
    """A causal language model from a folder or a Hugging Face id.

    Args:
        as_stored: leave the weights in the mapped files, in their type: for an engine of ZeRO-3, which casts and cuts
            them one by one. Only for a local folder whose weights are of one type and under the names of the modules;
            else the whole model is in this process' memory until it is cut.
        recomputed_every: the activations of the first of so many layers are recomputed in backward; 0: of none.
        max_tokens: no sequence is longer (generator.max_model_len); None: any length.

    Raises:
        VcppoError: no such model, or one whose logits or attention can't be computed here; says what to do.
    """
    model, missing, proved = from_pretrained(
        POLICY, path, trust_remote_code, max_tokens, as_stored=as_stored, dtype=dtype
    )
    refuse_missing(path, missing)
    make_saveable(model)
    prepare(model, recomputed_every)
    policy = PolicyModel(model, chunk_tokens=chunk_tokens, chunk_vocab=chunk_vocab)
    if not proved:
        probe(POLICY, policy, model, str(path))
    return policy


def load_critic(
    path: str | Path,
    *,
    init: str = "policy",
    bins: ValueBins | None = None,
    sees_log_probs: bool = False,
    dtype: torch.dtype = torch.float32,
    as_stored: bool = False,
    trust_remote_code: bool = False,
    recomputed_every: int = 0,
    max_tokens: int | None = None,
) -> CriticModel:
    """A critic.

    Args:
        path: the policy's path (architecture and, for init=policy, the backbone's weights).
        init: ``policy``: the policy's backbone with a new head of zeros, so V starts at 0 everywhere, in the middle
            of rewards of +-1, instead of at random. Otherwise a folder or id with a one-label ``score`` head: a critic
            saved by `save_model`, or a Hugging Face reward model.
        bins: of a head that gives a distribution: a new one is uniform, so V starts in the middle of the bins.
        sees_log_probs: it is given what tokens were sampled with (`vcppo.learner.models.surprise`).
        as_stored, recomputed_every, max_tokens: as of `load_policy`.

    Raises:
        VcppoError: no such model, or it has no ``score`` head, or another one than `bins` says, or other inputs.
    """
    source = path if init == "policy" else init
    if init != "policy":
        check_stated(init, trust_remote_code, bins, sees_log_probs)
    num_labels = 1 if bins is None else bins.num_bins
    model, missing, proved = from_pretrained(
        CRITIC, source, trust_remote_code, max_tokens, as_stored=as_stored, dtype=dtype, num_labels=num_labels
    )
    _settle_head(model, init, missing)
    return _finish_critic(model, bins, sees_log_probs, recomputed_every, proved, str(source))


def critic_over(
    policy: PolicyModel,
    *,
    bins: ValueBins | None = None,
    sees_log_probs: bool = False,
    recomputed_every: int = 0,
) -> CriticModel:
    """A critic with a new head, as `load_critic` makes it, whose backbone has the very Parameters of `policy`'s.

    Raises:
        VcppoError: transformers has no critic for this architecture, or one that is more than backbone and head.
    """
    hf_model = policy.hf_model
    model, proved = tree_over(CRITIC, hf_model, _backbone(share(hf_model)), 1 if bins is None else bins.num_bins)
    nn.init.zeros_(_linear(model, "score").weight)
    return _finish_critic(model, bins, sees_log_probs, recomputed_every, proved, hf_model.name_or_path)


def check_stated(folder: str, trust_remote_code: bool, bins: ValueBins | None, sees_log_probs: bool) -> None:
    """Raise VcppoError when a saved critic has another head or other inputs than these, by its config.json."""
    stated = read_config(folder, trust_remote_code)
    check_stated_head(folder, stated, bins)
    check_stated_input(folder, stated, sees_log_probs)


def _finish_critic(
    model: PreTrainedModel,
    bins: ValueBins | None,
    sees_log_probs: bool,
    recomputed_every: int,
    proved: bool,
    source: str,
) -> CriticModel:
    if sees_log_probs:
        add_surprise_input(model, source)
    state_head(model.config, bins)
    make_saveable(model)
    prepare(model, recomputed_every)
    critic = CriticModel(model, bins)
    if not proved:
        probe(CRITIC, critic, model, source)
    return critic


def _settle_head(model: PreTrainedModel, init: str, missing: list[str]) -> None:
    """A new head of zeros for init=policy; else raise VcppoError unless all weights were there."""
    new_head = any(name.startswith("score.") for name in missing)
    refuse_missing(model.name_or_path, [name for name in missing if not name.startswith("score.")])
    if init == "policy":
        nn.init.zeros_(_linear(model, "score").weight)
    elif new_head:
        raise VcppoError(
            f"critic.init={init}: this model has no `score.weight`, so it is not a critic or a reward model; "
            "give a folder that has one, or critic.init=policy for a new value head"
        )


def vocabulary_size(path: str | Path, trust_remote_code: bool) -> int:
    """How many tokens the model has an embedding for. Raises VcppoError as `load_policy` does."""
    config = read_config(path, trust_remote_code)
    try:
        return int(config.get_text_config().vocab_size)
    except (AttributeError, TypeError, ValueError) as error:
        raise VcppoError(f"model path {str(path)!r}: config.json has no vocab_size: choose another model") from error


def save_model(
    model: PolicyModel | CriticModel, folder: str | Path, state_dict: dict[str, Tensor] | None = None
) -> None:
    """Write config and safetensors that transformers (and, of a policy, vLLM) load.

    Args:
        state_dict: Hugging Face names to full tensors ``[...]``, from `TrainEngine.gather_full_state_dict`; needed
            where the model's own parameters are sharded, or it has adapters. None: the model's own.
    """
    hf_model, state = model.hf_model, None
    if state_dict is not None:
        state = {k: v.detach().cpu().contiguous() for k, v in state_dict.items() if not is_adapter(k)}
        hf_model = without_adapters(hf_model) if len(state) < len(state_dict) else hf_model
    hf_model.save_pretrained(str(folder), state_dict=state)
    for weights in Path(folder).glob("*.safetensors"):  # safetensors lets nobody but the owner read them
        shutil.copymode(Path(folder) / "config.json", weights)


def _hidden_states(model: PreTrainedModel, batch: PackedBatch, embeddings: Tensor | None = None) -> Tensor:
    """``[N, H]`` last hidden states of the backbone, of the batch's tokens or of their ``[N, H]`` embeddings."""
    read = {"input_ids": batch.token_ids[None]} if embeddings is None else {"inputs_embeds": embeddings[None]}
    output = _backbone(model)(
        **read,
        position_ids=batch.position_ids[None],
        use_cache=False,
        **attention_arguments(batch),
    )
    hidden: Tensor = output.last_hidden_state[0]
    return hidden


def _backbone(model: PreTrainedModel) -> nn.Module:
    """The model without its head."""
    found = model.base_model if model.base_model is not model else getattr(model, "model", None)
    if not isinstance(found, nn.Module):
        raise ModelRefused(f"{type(model).__name__} has no backbone apart from its head; {SUGGESTION}")
    return found


def _linear(model: PreTrainedModel, name: str) -> nn.Linear:
    layer = getattr(model, name, None)
    if not isinstance(layer, nn.Linear):
        raise ModelRefused(f"model {model.name_or_path}: {type(model).__name__} has no linear `{name}`; {SUGGESTION}")
    return layer


def _retype(layer: nn.Linear, head_class: type[HeadT]) -> HeadT:
    """Give a layer another forward. In place: its weight stays the same Parameter, tied as before, with its name."""
    layer.__class__ = head_class
    assert isinstance(layer, head_class)
    return layer


def _policy_of(model: PreTrainedModel) -> PolicyModel:
    prepare(model)
    return PolicyModel(model)


def _critic_of(model: PreTrainedModel) -> CriticModel:
    prepare(model)
    return CriticModel(model)


@torch.no_grad()
def _packed_log_probs(policy: nn.Module, trajectories: Sequence[Trajectory]) -> list[Tensor]:
    batch = build_packed(trajectories)
    return list(policy(batch).log_probs.split([int(t.action_mask.sum()) for t in trajectories]))


@torch.no_grad()
def _packed_values(critic: nn.Module, trajectories: Sequence[Trajectory]) -> list[Tensor]:
    return list(critic(build_packed(trajectories)).last_values.split(1))


@torch.no_grad()
def _plain_log_probs(model: PreTrainedModel, token_ids: Tensor, prompt: int) -> Tensor:
    logits = model(input_ids=token_ids, use_cache=False).logits[0, prompt - 1 : -1].float()
    log_probs: Tensor = logits.log_softmax(-1).gather(1, token_ids[0, prompt:, None])[:, 0]
    return log_probs


@torch.no_grad()
def _plain_values(model: PreTrainedModel, token_ids: Tensor, prompt: int) -> Tensor:
    """At the last token, as transformers pools."""
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits.float()
    return value_of(_linear(model, "score"), logits)


POLICY = Reader(AutoModelForCausalLM, _policy_of, _packed_log_probs, _plain_log_probs)
CRITIC = Reader(AutoModelForSequenceClassification, _critic_of, _packed_values, _plain_values)

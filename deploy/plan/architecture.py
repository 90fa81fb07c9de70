"""How many weights a model has, from its config's values: dense decoders with a gated MLP, as Llama and Qwen are."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_file import read_json_object

KNOWN = Path(__file__).with_name("architectures.yaml")
_QKV_BIAS = {"qwen2"}  # bias on queries, keys and values, nowhere else
_QK_NORM = {"qwen3"}  # a norm on each head's queries and keys
_FAMILIES = {"llama", "mistral", "qwen2", "qwen3"}


class PlanError(VcppoError):
    """The model can't be planned for; the text says why and what to give."""


@dataclass(frozen=True)
class Architecture:
    """Counts are of elements, not bytes."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    qkv_bias: bool = False
    qk_norm: bool = False

    @classmethod
    def of(cls, values: Mapping[str, Any], source: str) -> Architecture:
        """From config.json's fields. Raises PlanError for a family whose sums are not known here."""
        family = str(values.get("model_type", ""))
        if family not in _FAMILIES:
            raise PlanError(
                f"{source}: model_type {family!r} can't be planned: known are {', '.join(sorted(_FAMILIES))}"
            )
        try:
            hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
            return cls(
                hidden=hidden,
                layers=int(values["num_hidden_layers"]),
                heads=heads,
                kv_heads=int(values.get("num_key_value_heads") or heads),
                head_dim=int(values.get("head_dim") or hidden // heads),
                intermediate=int(values["intermediate_size"]),
                vocabulary=int(values["vocab_size"]),
                tied=bool(values.get("tie_word_embeddings", False)),
                qkv_bias=family in _QKV_BIAS,
                qk_norm=family in _QK_NORM,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlanError(f"{source}: {error} is missing or no number") from None

    @property
    def layer_parameters(self) -> int:
        """Of one decoder layer: attention with its biases and norms, the gated MLP, two norms."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = self.hidden * (2 * queries + 2 * keys)
        biases = (queries + 2 * keys) if self.qkv_bias else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        return attention + biases + 3 * self.hidden * self.intermediate + norms

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Of one decoder layer: name → (inputs, outputs)."""
        hidden, inner = self.hidden, self.intermediate
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "q_proj": (hidden, queries), "k_proj": (hidden, keys), "v_proj": (hidden, keys),
            "o_proj": (queries, hidden), "gate_proj": (hidden, inner), "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }  # fmt: skip

    def adapter_parameters(self, rank: int, target_modules: Sequence[str] = ()) -> int:
        """Of low-rank adapters of all layers: ``rank`` × (inputs + outputs) each; no names: all linear layers."""
        chosen = [size for name, size in self.linear_layers.items() if not target_modules or name in target_modules]
        return self.layers * rank * sum(inputs + outputs for inputs, outputs in chosen)

    @property
    def backbone_parameters(self) -> int:
        """Embedding, all layers, the last norm; no output layer."""
        return self.vocabulary * self.hidden + self.layers * self.layer_parameters + self.hidden

    @property
    def policy_parameters(self) -> int:
        """The backbone and the output layer, which a tied model shares with its embedding."""
        return self.backbone_parameters + (0 if self.tied else self.vocabulary * self.hidden)

    @property
    def critic_parameters(self) -> int:
        """The backbone and one number a token."""
        return self.backbone_parameters + self.hidden

    @property
    def kv_elements_per_token(self) -> int:
        """Keys and values of all layers that one token leaves in the cache."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def activation_elements_per_token(self) -> int:
        """What one layer keeps for its backward: norms (in and out, one in float32), q, k, v before and after the
        rotation, attention's output, and four of the gated MLP. No attention matrix: it is computed again."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return 8 * self.hidden + 3 * queries + 3 * keys + 4 * self.intermediate


class Models(NamedTuple):
    """The models of a run; `critic` is the policy's own architecture where the config names no other."""

    policy: Architecture
    critic: Architecture


def models_of(config: VcppoConfig) -> Models:
    """Of the config's models: each a folder's config.json, the cold start's own, or a known Hugging Face id.

    Raises:
        PlanError: none of them.
    """
    policy, critic = architecture_of(config), config.critic
    if not config.algorithm.has_critic:
        return Models(policy, policy)
    if critic.model is not None:
        return Models(policy, _named(critic.model, "critic.model"))
    if critic.init not in ("value_pretrained", "policy"):
        return Models(policy, _named(critic.init, "critic.init"))
    return Models(policy, policy)


def architecture_of(config: VcppoConfig) -> Architecture:
    """Of the policy. Raises PlanError."""
    path = config.model.path
    is_made = config.sft.init == "scratch" and config.sft.architecture
    if is_made and not _config_file(path).exists():
        return Architecture.of({"vocab_size": 64, **config.sft.architecture}, "sft.architecture")
    return _named(path, "model.path")


def _config_file(path: str) -> Path:
    return Path(path).expanduser() / "config.json"


def _named(path: str, setting: str) -> Architecture:
    own = _config_file(path)
    if own.exists():
        return Architecture.of(read_json_object(own, "give a model folder that is whole"), str(own))
    known = yaml.safe_load(KNOWN.read_text(encoding="utf-8"))
    base = re.sub(r"-(Instruct|Base|Chat|Math|Coder)\b", "", path)
    for name in (path, base):
        if name in known:
            return Architecture.of(known[name], name)
    raise PlanError(
        f"{setting} = {path!r}: no folder here, and not among the models whose sizes are known ({', '.join(known)}): "
        "give a folder with its config.json"
    )

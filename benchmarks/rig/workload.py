"""What the learner's benchmarks train on: responses of log-normal lengths, and what training them costs in FLOPs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from vcppo.common.records.trajectory import Trajectory, VersionSpan

MEAN_LENGTH, LONGEST = 295, 1220


def log_normal_lengths(count: int, mean: int = MEAN_LENGTH, longest: int = LONGEST) -> list[int]:
    """`count` lengths in tokens, the same at every call: quantiles of a log-normal in a random order.

    Its width is what brings the highest of the quantiles to `longest` while the mean is `mean` (or near: a few lengths
    can't reach far from their mean).
    """
    normal = np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    shapes = [np.exp(width * normal) for width in np.linspace(0.05, 3.0, 600)]
    shape = min(shapes, key=lambda shape: abs(shape.max() / shape.mean() - longest / mean))
    lengths = np.maximum(2, np.rint(shape * mean / shape.mean())).astype(int)
    return [int(length) for length in np.random.default_rng(0).permutation(lengths)]


def random_trajectories(lengths: Iterable[int], num_vocab: int, prompt: int = 1) -> list[Trajectory]:
    """Random tokens, every one of the response an action; half of them right, all sampled by version 0."""
    random = np.random.default_rng(0)
    return [_trajectory(random, i, length, num_vocab, min(prompt, length - 1)) for i, length in enumerate(lengths)]


def _trajectory(random: np.random.Generator, i: int, length: int, num_vocab: int, prompt: int) -> Trajectory:
    response = length - prompt
    return Trajectory(
        id=f"p-{i:06d}@generator-0.0",
        prompt_id=f"p-{i:06d}",
        group_id=f"g-{i:06d}",
        sample_index=0,
        task="benchmark",
        prompt_token_ids=random.integers(0, num_vocab, prompt).astype(np.int32),
        response_token_ids=random.integers(0, num_vocab, response).astype(np.int32),
        action_mask=np.ones(response, np.bool_),
        behaviour_log_probs=np.full(response, -math.log(num_vocab), np.float32),
        version_spans=(VersionSpan(0, response),),
        finish_reason="stop",
        reward=1.0 if i % 2 else -1.0,
        outcome="correct" if i % 2 else "wrong",
        generator_id="generator-0",
        issue_version=0,
    )


@dataclass(frozen=True)
class ModelFlops:
    """Multiplications and additions that a model of this shape can't do without; a multiply-add counts as two.

    Weights: 2 a token forward, 4 backward, of every matrix in the layers; the output layer likewise, of action tokens
    only. Attention: scores and their sum over values, causal, so half of each sequence's square. What is computed a
    second time (log-probs in blocks, say) does not count, nor do norms, activations, the optimizer.
    """

    layer_weights: int
    head_weights: int
    attention_width: int  # layers x heads x head size

    @classmethod
    def of(cls, config: Any) -> ModelFlops:
        """Of a Llama or Qwen2 config."""
        hidden, layers = config.hidden_size, config.num_hidden_layers
        head = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        queries, keys = head * config.num_attention_heads, head * config.num_key_value_heads
        layer = 2 * hidden * queries + 2 * hidden * keys + 3 * hidden * config.intermediate_size
        return cls(layers * layer, config.vocab_size * hidden, layers * queries)

    def forward(self, lengths: Sequence[int], num_actions: int = 0) -> float:
        """Of sequences of these lengths, with the output layer at `num_actions` tokens."""
        tokens, squares = float(sum(lengths)), float(sum(length**2 for length in lengths))
        return (
            2 * self.layer_weights * tokens + 2 * self.attention_width * squares + 2 * self.head_weights * num_actions
        )

    def step(self, lengths: Sequence[int], num_actions: int, *, old_log_probs: bool = True, epochs: int = 1) -> float:
        """Of a whole learner step: values, old log-probs, then forward and backward (twice a forward) of both."""
        critic, actor = self.forward(lengths), self.forward(lengths, num_actions)
        return critic + actor * old_log_probs + 3 * epochs * (critic + actor)

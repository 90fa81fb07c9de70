"""Forward and backward of a policy's loss over responses of log-normal lengths, packed against padded.

All three ways run transformers' own model with the learner's log-prob head, on 24 sequences (mean 295 tokens, longest
1,220), and give the gradient of the sum of their log-probs over their number:

- packed: `vcppo.learner.batching.packing` and our attention, as the learner trains;
- padded in arrival order: micro-batches of 8 sequences, padded to the longest of each, the usual way;
- length-sorted: as many sequences to a micro-batch, longest first, as fit a budget padded, the better peers' way.

The padded ways use transformers' "sdpa" attention with a padding mask. Log-probs are computed of real tokens only in
all three, so the ways differ in padding and attention alone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.rig.figures import Figure, at_least
from benchmarks.rig.harness import Settings, Timing, measure, ratios
from benchmarks.rig.workload import log_normal_lengths, random_trajectories
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.batching.packing import build_packed, pack
from vcppo.learner.kernels.attention import PACKED_ATTENTION
from vcppo.learner.models.models import PolicyModel

TOKEN_BUDGET = 4096  # of a micro-batch, padding included
ARRIVAL_BATCH = 8  # transformers' and TRL's default per device
MAX_GRADIENT_DIFFERENCE = 1e-4  # of float32, by norm
_CHECKED = 6  # sequences
TYPES = ((torch.float32, "fp32"), (torch.bfloat16, "bf16"))


def run(settings: Settings) -> list[Figure]:
    """Both types (`--quick`: the first), against both ways of padding."""
    config = _shape(settings)
    lengths = log_normal_lengths(settings.size(24, 6), longest=settings.size(1220, 600))
    trajectories = random_trajectories(lengths, config.vocab_size)
    figures = []
    for dtype, name in TYPES[: settings.size(len(TYPES), 1)]:
        if dtype == torch.float32:
            _same_gradients(_ways(config, dtype, trajectories[:_CHECKED]))
        ways = _ways(config, dtype, trajectories)
        timings = measure({way: call for way, (_, call) in ways.items()}, settings.rounds(2), single_calls=True)
        figures += _figures(name, timings, sum(lengths), _millions(config))
    return figures


def _shape(settings: Settings) -> LlamaConfig:
    """Like SmolLM2's, narrower and with fewer layers, so that a full run takes a minute."""
    return LlamaConfig(
        hidden_size=settings.size(384, 64),
        num_hidden_layers=settings.size(3, 2),
        num_attention_heads=settings.size(6, 2),
        num_key_value_heads=settings.size(2, 1),
        intermediate_size=settings.size(1024, 128),
        vocab_size=settings.size(4096, 128),
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )


def _ways(
    config: LlamaConfig, dtype: torch.dtype, trajectories: list[Trajectory]
) -> dict[str, tuple[PolicyModel, Callable[[], object]]]:
    """By name: a model (the same weights) and one forward + backward of the batch; gradients are left in the model."""
    models = {}
    for attention in (PACKED_ATTENTION, "sdpa"):
        torch.manual_seed(0)
        # A copy: the model writes its attention into the config.
        model = LlamaForCausalLM._from_config(copy.deepcopy(config), dtype=dtype, attn_implementation=attention)
        models[attention] = PolicyModel(model)
    packed, padded = models[PACKED_ATTENTION], models["sdpa"]
    arrival = list(range(len(trajectories)))
    batches = [arrival[i : i + ARRIVAL_BATCH] for i in range(0, len(arrival), ARRIVAL_BATCH)]
    by_length = list(_sorted_batches(trajectories))
    return {
        "packed": (packed, lambda: _packed(packed, trajectories)),
        "arrival": (padded, lambda: _padded(padded, trajectories, batches)),
        "sorted": (padded, lambda: _padded(padded, trajectories, by_length)),
    }


def _sorted_batches(trajectories: list[Trajectory]) -> Iterator[list[int]]:
    """Longest first; each micro-batch takes sequences while (their number x the longest) fits the budget."""
    left = sorted(range(len(trajectories)), key=lambda i: -trajectories[i].num_tokens)
    while left:
        count = max(1, TOKEN_BUDGET // trajectories[left[0]].num_tokens)
        yield left[:count]
        left = left[count:]


def _packed(model: PolicyModel, trajectories: list[Trajectory]) -> None:
    model.zero_grad()
    num_actions = sum(t.num_tokens - 1 for t in trajectories)
    for group in pack([t.num_tokens for t in trajectories], TOKEN_BUDGET):
        output = model(build_packed(trajectories, group))
        torch.autograd.backward(output.log_probs.sum() / num_actions)


def _padded(model: PolicyModel, trajectories: list[Trajectory], batches: list[list[int]]) -> None:
    model.zero_grad()
    num_actions = sum(t.num_tokens - 1 for t in trajectories)
    for group in batches:
        token_ids, mask = _right_padded([trajectories[i] for i in group])
        hidden = model.hf_model.base_model(input_ids=token_ids, attention_mask=mask, use_cache=False).last_hidden_state
        chosen = mask[:, 1:].bool()
        log_probs, _ = model.hf_model.lm_head(hidden[:, :-1][chosen], token_ids[:, 1:][chosen])
        torch.autograd.backward(log_probs.sum() / num_actions)


def _right_padded(trajectories: list[Trajectory]) -> tuple[Tensor, Tensor]:
    """Token ids and mask, ``[B, T]`` int64."""
    rows = [torch.tensor([*t.prompt_token_ids, *t.response_token_ids]) for t in trajectories]
    mask = [torch.ones(len(row), dtype=torch.int64) for row in rows]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True), nn.utils.rnn.pad_sequence(mask, batch_first=True)


def _same_gradients(ways: dict[str, tuple[PolicyModel, Callable[[], object]]]) -> None:
    gradients = {}
    for name, (model, call) in ways.items():
        call()
        gradients[name] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    for name in ("arrival", "sorted"):
        difference = float((gradients["packed"] - gradients[name]).norm() / gradients[name].norm())
        if not difference <= MAX_GRADIENT_DIFFERENCE:
            raise ArithmeticError(
                f"packed and {name} gradients differ by {difference:.2e} of their norm, "
                f"at most {MAX_GRADIENT_DIFFERENCE:.0e} is rounding"
            )


def _figures(dtype: str, timings: dict[str, Timing], num_tokens: int, millions: float) -> list[Figure]:
    packed = timings["packed"]
    against: list[tuple[str, str, Any]] = [
        ("arrival", f"padded in arrival order, {ARRIVAL_BATCH} a micro-batch", at_least(2.4)),
        ("sorted", f"length-sorted micro-batches of {TOKEN_BUDGET:,} padded tokens", at_least(1.4)),
    ]
    return [
        Figure.of(
            f"learner forward + backward, log-normal lengths, {millions:.0f}M parameters, {dtype}",
            text,
            ratios(timings[way], packed),
            goal=goal,
            absolute=f"{num_tokens / packed.median:,.0f} against {num_tokens / timings[way].median:,.0f} tokens/s",
            peak_mib=packed.peak_mib,
        )
        for way, text, goal in against
    ]


def _millions(config: LlamaConfig) -> float:
    with torch.device("meta"):
        return float(sum(p.numel() for p in LlamaForCausalLM(config).parameters())) / 1e6

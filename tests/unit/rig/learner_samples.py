"""Tiny models and random trajectories that the learner's tests share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from vcppo.common.records.trajectory import FinishReason, Segment, Trajectory, VersionSpan

VOCAB = 32


def tiny_config(*, tied: bool = True, **changes: object) -> Qwen2Config:
    fields = {
        "vocab_size": VOCAB,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 256,
        "tie_word_embeddings": tied,
    }
    return Qwen2Config(**(fields | changes))


def save_tiny_policy(folder: Path, *, tied: bool = True, seed: int = 0, **changes: object) -> Path:
    """A random Qwen2 whose weights are large enough that attention and logits are far from uniform."""
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(tiny_config(tied=tied, **changes)).float()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8.0)
    model.save_pretrained(str(folder))
    return folder


def trajectory(
    rng: np.random.Generator,
    name: str,
    prompt: int,
    response: int,
    *,
    tool_text: float = 0.0,
    finish: FinishReason = "stop",
    group: str = "g0",
) -> Trajectory:
    """`tool_text` is the share of response tokens that are not actions; the first is always an action."""
    mask = rng.random(response) >= tool_text
    mask[0] = True
    log_probs = np.where(mask, rng.normal(-2, 0.5, response), 0.0).astype(np.float32)
    return Trajectory(
        id=f"{name}@generator-0.0",
        prompt_id=name,
        group_id=group,
        sample_index=0,
        task="test",
        prompt_token_ids=rng.integers(0, VOCAB, prompt).astype(np.int32),
        response_token_ids=rng.integers(0, VOCAB, response).astype(np.int32),
        action_mask=mask,
        behaviour_log_probs=log_probs,
        version_spans=(VersionSpan(0, response),),
        finish_reason=finish,
        reward=float(rng.choice([-1.0, 1.0])),
        outcome="correct",
        generator_id="generator-0",
        issue_version=0,
    )


def as_rollout(*conversations: Trajectory) -> Trajectory:
    """One rollout of these conversations; the first says how it ended, and has the others as its segments."""
    whole, *others = conversations
    segments = tuple(
        Segment(
            each.prompt_token_ids, each.response_token_ids, each.action_mask, each.behaviour_log_probs,
            each.version_spans, each.finish_reason,
        )
        for each in others
    )  # fmt: skip
    return replace(whole, segments=segments)


def mixed_batch(seed: int = 0, count: int = 7, *, tool_text: float = 0.3) -> list[Trajectory]:
    """Mixed lengths with tool text; one response is cut off, two have the same length."""
    rng = np.random.default_rng(seed)
    batch = []
    for i in range(count):
        prompt, response = int(rng.integers(1, 9)), int(rng.integers(1, 24))
        if i in (2, 3):
            prompt, response = 5, 11
        finish: FinishReason = "length" if i == 1 else "stop"
        share = tool_text if i != 4 else 0.0
        batch.append(trajectory(rng, f"p{i}", prompt, response, tool_text=share, finish=finish, group=f"g{i // 2}"))
    return batch

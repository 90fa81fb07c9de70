"""Which ways of training fit on how many GPUs: `vcppo plan -c CONFIG --side-by-side`. Pure.

The same sums as `vcppo plan`, for known models: full fine-tuning with a critic, adapters with a critic, full
fine-tuning without a critic (GRPO). Of each, the least that one of the learner's GPUs holds, over the ZeRO stages that
it takes. Type, micro-batch, checkpointing and rank are the config's. Generators have GPUs of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.deploy.plan.architecture import models_of
from vcppo.deploy.plan.arithmetic import GIB, gib, rank_plan

MODELS = ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-32B")
NUM_GPUS = (1, 2, 8)
RANK = 32  # where the config has no adapters
OWN_OF_CUDA = GIB  # its context, a process
FULL, LORA, GRPO = "full fine-tuning, critic", "LoRA, critic", "full fine-tuning, no critic (GRPO)"


class Need(NamedTuple):
    """Bytes of one of the learner's GPUs, CUDA's own included, and the ZeRO stage that comes to the least."""

    total: int
    zero_stage: int


def need(config: VcppoConfig, model: str, num_gpus: int, way: str) -> Need:
    """Least over the stages that are possible."""
    stages = (0,) if num_gpus == 1 else (1, 2) if way == LORA else (1, 2, 3)
    return min(Need(_total(config, model, num_gpus, way, stage), stage) for stage in stages)


def _total(config: VcppoConfig, model: str, num_gpus: int, way: str, stage: int) -> int:
    learner = {
        name: getattr(config.learner, name)
        for name in (
            "micro_batch_tokens",
            "gradient_checkpointing",
            "gradient_checkpointing_every",
            "log_prob_chunk_tokens",
            "log_prob_chunk_vocab",
        )
    }
    tree: dict[str, Any] = {
        "model": {"path": model, "dtype": config.model.dtype},
        "learner": {**learner, "num_ranks": num_gpus, "zero_stage": stage},
        "generator": {"max_model_len": config.generator.max_model_len},
        "sampling": {"max_response_tokens": config.sampling.max_response_tokens},
        "lora": {"rank": (config.lora.rank or RANK) if way == LORA else None},
        "algorithm": {"advantage_estimator": "group_mean" if way == GRPO else "gae"},
    }
    tried = VcppoConfig.model_validate(tree)
    return rank_plan(models_of(tried), tried).total + OWN_OF_CUDA


def markdown(config: VcppoConfig, gpu_memory_gib: float) -> Iterator[str]:
    """Lines of a table; what does not fit on a GPU of that size is struck out."""
    ways = (FULL, LORA, GRPO)
    yield f"| model | GPUs of the learner | {' | '.join(ways)} |"
    yield "|---" * (2 + len(ways)) + "|"
    for model in MODELS:
        for num_gpus in NUM_GPUS:
            cells = [_cell(need(config, model, num_gpus, way), gpu_memory_gib) for way in ways]
            yield f"| {model.rpartition('/')[2]} | {num_gpus} | {' | '.join(cells)} |"


def _cell(found: Need, gpu_memory_gib: float) -> str:
    text = f"{gib(found.total)} GiB, ZeRO-{found.zero_stage}"
    return text if found.total <= gpu_memory_gib * GIB else f"~~{text}~~"

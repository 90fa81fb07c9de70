"""A run small enough to train its cold start within a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def tiny_run(folder: Path, name: str) -> dict[str, Any]:
    """The config tree of run `name` below `folder`: ten steps of cold start on one-digit chains, no RL settings."""
    return {
        "run": {"name": name, "folder": str(folder)},
        "model": {"path": str(folder / name / "cold_start"), "dtype": "float32"},
        "task": {"options": {"num_operations": 1, "num_digits": 1, "max_multiplier": 2}},
        "sft": {
            "architecture": {
                "model_type": "llama",
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "intermediate_size": 64,
                "tie_word_embeddings": True,
                "max_position_embeddings": 128,
                "initializer_range": 0.1,
            },
            "phases": [{"steps": 10, "batch_size": 16, "learning_rate": 0.01}],
        },
        "sampling": {"max_response_tokens": 64},
        "generator": {"max_model_len": 128},
        "learner": {"micro_batch_tokens": 256, "device": "cpu"},
        "logging": {"tensorboard": False},
    }

"""A small model folder and data for the tests of `vcppo check`: what is right, to be broken in one place each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vcppo.common.config import VcppoConfig, load_config

SPECIAL = ("<pad>", "<s>", "<|end|>", "<|user|>", "<|assistant|>", "<eos>")
BYTES = len(SPECIAL)
VOCABULARY = BYTES + 256
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def save_tokenizer(folder: Path, *, template: str | None = TEMPLATE, eos: str = "<|end|>") -> None:
    """A token a byte: every text can be written, and comes back."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *alphabet))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, bos_token="<s>", pad_token="<pad>")
    fast.chat_template = template
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    fast.save_pretrained(folder)


def save_model(folder: Path, **changes: Any) -> Path:
    """A llama of a hundred thousand weights, as vLLM takes it, with its tokenizer."""
    torch.manual_seed(0)
    values = {
        "vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 1024, "bos_token_id": 1,
        "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**(values | changes))).float().save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_config_only(folder: Path, **changes: Any) -> Path:
    """What the generator's checks read: no weights."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {"model_type": "llama", "vocab_size": VOCABULARY, "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0}
    (folder / "config.json").write_text(json.dumps(values | changes))
    save_tokenizer(folder)
    return folder


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows))
    return path


def sums(count: int = 60) -> list[tuple[str, str]]:
    return [(f"What is {i} + {i}?", str(2 * i)) for i in range(count)]


def write_config(folder: Path, **sections: dict[str, Any]) -> Path:
    """`folder`/run.yaml of a run on `folder`/model and `folder`/rows.jsonl."""
    tree: dict[str, Any] = {
        "run": {"name": "r", "folder": str(folder / "runs")},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "task": {"name": "dataset", "options": {"path": str(folder / "rows.jsonl"), "held_out_fraction": 0.3}},
        "sampling": {"max_response_tokens": 32},
        "generator": {"max_model_len": 256, "num_generators": 1, "max_in_flight": 8, "enforce_eager": True,
                      "kv_cache_gib": 0.05},
        "learner": {"micro_batch_tokens": 512},
    }  # fmt: skip
    for name, values in sections.items():
        tree[name] = tree.get(name, {}) | values
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def make(folder: Path, *overrides: str) -> VcppoConfig:
    """Config, rows and a folder without weights."""
    save_config_only(folder / "model")
    write_rows(folder / "rows.jsonl", sums())
    return load_config(write_config(folder), overrides)

"""Model folders that are broken or hostile: one clear line, no code run, no memory for what is not there."""

from __future__ import annotations

import json
import os
import pickle
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.rig.learner_samples import save_tiny_policy
from vcppo.common.errors import VcppoError
from vcppo.generator.vllm_engine.end_tokens import ModelError, load_tokenizer, require_model
from vcppo.learner.models.models import load_critic, load_policy, vocabulary_size


class Intruder:
    """Unpickling it runs code."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.trace),))


def _zipped(folder: Path, trace: Path) -> None:
    torch.save({"weight": Intruder(trace)}, folder / "pytorch_model.bin")


def _plain(folder: Path, trace: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Intruder(trace)}))


def _indexed(folder: Path, trace: Path) -> None:
    torch.save({"weight": Intruder(trace)}, folder / "shard.bin")
    index = {"metadata": {}, "weight_map": {"weight": "shard.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def _honest(folder: Path, trace: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")


@pytest.mark.parametrize("write", [_zipped, _plain, _indexed, _honest])
def test_pickled_weights_are_never_read(tmp_path: Path, write: Callable[[Path, Path], None]) -> None:
    """Also as critic.init: a folder with pytorch_model.bin is the usual form of older reward models."""
    folder = save_tiny_policy(tmp_path / "model")
    write(folder, tmp_path / "ran")
    (folder / "model.safetensors").unlink()
    for load in (load_policy, lambda path: load_critic(path, init=str(path))):
        with pytest.raises(VcppoError, match=r"has no \*\.safetensors; pickled weights .* are not loaded"):
            load(folder)
    with pytest.raises(ModelError, match="pickled weights only"):
        require_model(str(folder))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("model_type", ["of_its_own", "qwen2"])
def test_code_in_a_folder_is_not_run(tmp_path: Path, model_type: str) -> None:
    folder = save_tiny_policy(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": model_type, "auto_map": {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.T", None]}}))
    (folder / "own.py").write_text(f"import os; os.mkdir({str(tmp_path / 'ran')!r})")
    with suppress(VcppoError):  # a known type is loaded as what it is, by transformers' own code
        load_policy(folder)
    with suppress(ModelError):
        load_tokenizer(str(folder), trust_remote_code=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "header without end", "noise"])
def test_damaged_weights_are_one_line_that_names_the_file(tmp_path: Path, damage: str) -> None:
    """safetensors has an error of its own, which ended the learner with a traceback."""
    folder = save_tiny_policy(tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    damaged = {
        "cut": data[: len(data) // 2],
        "flipped": data[:20] + bytes([data[20] ^ 255]) + data[21:],
        "empty": b"",
        "header without end": b"\xff" * 8 + data[8:],
        "noise": bytes(range(256)) * 8,
    }
    file.write_bytes(damaged[damage])
    with pytest.raises(VcppoError, match=r"model\.safetensors: not readable as safetensors"):
        load_policy(folder)


CONFIGS = {
    "empty": "",
    "list": "[]",
    "nested": "[" * 100_000,
    "no type": "{}",
    "type of a type": '{"model_type": [1]}',
    "text for a number": '{"model_type": "qwen2", "hidden_size": "x"}',
    "null": '{"model_type": "qwen2", "hidden_size": null}',
    "no heads": '{"model_type": "qwen2", "num_attention_heads": 0}',
    "dtype": '{"model_type": "qwen2", "dtype": "evil"}',
    "layer types": '{"model_type": "qwen2", "layer_types": "zz"}',
    "quantised": '{"model_type": "qwen2", "quantization_config": {"quant_method": "zz"}}',
    "beyond memory": '{"model_type": "qwen2", "vocab_size": 1000000000000000}',
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_a_broken_config_is_one_line(tmp_path: Path, config: str) -> None:
    folder = save_tiny_policy(tmp_path)
    (folder / "config.json").write_text(config)
    with pytest.raises(VcppoError) as caught:
        load_policy(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_config_larger_than_its_weights_takes_no_memory(tmp_path: Path) -> None:
    """Qwen2's default is 7 billion parameters: 28 GB of random numbers, to be refused afterwards."""
    folder = save_tiny_policy(tmp_path)
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VcppoError, match=r"asks for [\d,]{13,} parameters, its safetensors hold"):
        load_policy(folder)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_a_vocabulary_that_is_none_is_named(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path)
    assert vocabulary_size(folder, trust_remote_code=False) == 32
    (folder / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(VcppoError, match="has no vocab_size"):
        vocabulary_size(folder, trust_remote_code=False)


@pytest.mark.parametrize("tokenizer", ['{"version": "1.0"', "[]", '{"model": {"type": "zz"}}', "[" * 100_000])
def test_a_broken_tokenizer_is_one_line(tmp_path: Path, tokenizer: str) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer)
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(ModelError, match="no tokenizer that can be loaded") as caught:
        load_tokenizer(str(tmp_path), trust_remote_code=False)
    assert "\n" not in str(caught.value)


def test_a_shard_with_tensors_the_config_does_not_know_still_loads(tmp_path: Path) -> None:
    folder = save_tiny_policy(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"extra": torch.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_policy(folder).hf_model.config.hidden_size == 32

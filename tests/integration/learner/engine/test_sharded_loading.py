"""Under ZeRO-3 no rank holds the whole model while it is loaded: its own memory is counted after each module.

Run as a script (`torchrun ... test_sharded_loading.py FOLDER CASE`) this file is the worker. What is counted is the
memory that only this process has (RssAnon): pages of the mapped file are the system's, which drops them when it needs
the room. Each case has processes of its own: memory that one has freed would be used again by the next.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.integration.learner.engine.test_engine_ranks import launch
from vcppo.common.process.end_process import end_process

pytestmark = pytest.mark.slow

MIB = 1 << 20
NUM_RANKS = 2
SHAPE = {"vocab_size": 8000, "hidden_size": 512, "num_hidden_layers": 20, "num_attention_heads": 8,
         "num_key_value_heads": 8, "intermediate_size": 1408}  # fmt: skip
# name → (types of the files and of the engine, whether weights are left in the mapped files)
CASES: dict[str, tuple[str, str, bool]] = {
    "cast_up": ("bfloat16", "float32", True),
    "cast_down": ("float32", "bfloat16", True),
    "as_it_is": ("float32", "float32", True),
    "whole": ("bfloat16", "float32", False),  # as it would be: so that the figures are known to tell
}


# --- the worker -------------------------------------------------------------------------------------------------------


def run_worker(folder: Path, case: str) -> None:
    from vcppo.learner.engine import deepspeed_engine
    from vcppo.learner.engine.deepspeed_engine import init_distributed, rank, shutdown_distributed

    torch.set_num_threads(1)
    init_distributed("cpu", timeout_seconds=120)
    deepspeed_engine._import_deepspeed()
    (folder / f"{case}-{rank()}.json").write_text(json.dumps(peak(folder, *CASES[case])))
    shutdown_distributed()


def peak(folder: Path, stored: str, dtype: str, as_stored: bool) -> dict[str, float]:
    """MiB: of the weights in the engine's type, of the largest module, and by how much this process grew at most."""
    import deepspeed

    from vcppo.learner.engine.sharding import shard
    from vcppo.learner.models.models import load_policy

    before = own_memory()
    wanted = getattr(torch, dtype)
    policy = load_policy(folder / stored, dtype=wanted, as_stored=as_stored)
    weights = [parameter.numel() * wanted.itemsize for parameter in policy.parameters()]
    grown = [own_memory() - before]
    settings = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3},
                "bf16": {"enabled": dtype == "bfloat16"}}  # fmt: skip

    def cut(module: Any) -> None:
        grown.append(own_memory() - before)  # one module's weights are here in full
        deepspeed.zero.Init(module=module, config_dict_or_path=settings, dtype=wanted)
        grown.append(own_memory() - before)

    shard(policy, wanted, cut)
    assert all(parameter.numel() == 0 and parameter.ds_tensor.dtype == wanted for parameter in policy.parameters())
    assert len(grown) > 2 * SHAPE["num_hidden_layers"]
    return {"weights": sum(weights) / MIB, "largest": max(weights) / MIB, "peak": max(grown) / MIB,
            "kept": grown[-1] / MIB}  # fmt: skip


def own_memory() -> int:
    """Bytes in pages that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) << 10


# --- the tests --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def peaks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, float]]]:
    """By case and rank."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("sharded")
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    for dtype in ("float32", "bfloat16"):
        model.to(getattr(torch, dtype)).save_pretrained(folder / dtype)
    with pytest.MonkeyPatch.context() as patch:
        # Each tensor in pages of its own: one that is freed leaves no hole, which would be counted.
        patch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
        for case in CASES:
            launch(folder, NUM_RANKS, __file__, case)
    return {
        case: [json.loads((folder / f"{case}-{rank}.json").read_text()) for rank in range(NUM_RANKS)] for case in CASES
    }


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[2]])
def test_a_rank_holds_its_part_and_one_module(peaks: dict[str, list[dict[str, float]]], case: str) -> None:
    for found in peaks[case]:
        part = found["weights"] / NUM_RANKS
        assert found["peak"] < part + found["largest"] + 0.05 * found["weights"], found
        assert found["kept"] > 0.8 * part, found  # it is there at the end


def test_the_figures_would_show_a_whole_model(peaks: dict[str, list[dict[str, float]]]) -> None:
    assert all(found["peak"] > 0.95 * found["weights"] for found in peaks["whole"])


if __name__ == "__main__":
    run_worker(Path(sys.argv[1]), sys.argv[2])
    end_process(0)  # as a learner: gloo's threads may outlive the group

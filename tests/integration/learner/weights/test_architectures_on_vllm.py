"""Mixture-of-experts models, whose weights transformers renames and fuses, on a real vLLM: after an update its
log-probs are the learner's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import PreTrainedTokenizerFast

from tests.integration.learner.weights.test_weight_broadcast import Bench, write_config
from tests.unit.rig.architectures import save_tiny
from vcppo.common.config import TaskConfig
from vcppo.common.tasks import load_task

TOLERANCE = 2e-3  # nats: float32 on both sides, and another order of summation over experts
# vLLM on a CPU knows no heads smaller than 32.
SIZES = {
    "vocab_size": 32,
    "hidden_size": 128,
    "intermediate_size": 256,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.05,
    "eos_token_id": 1,
    "bos_token_id": None,
    "pad_token_id": 0,
}
MODELS: dict[str, dict[str, Any]] = {
    "mixtral": SIZES,  # block_sparse_moe.experts.N.w1 in the checkpoint
    "qwen3_moe": {**SIZES, "moe_intermediate_size": 128, "tie_word_embeddings": False},
}


class MoeBench(Bench):
    """Redis and one generator for each model."""

    names = tuple(MODELS)
    per_model = 1

    def write(self, name: str) -> Path:
        path = write_config(self.folder, name, self.redis_url)
        tree = yaml.safe_load(path.read_text())
        folder = save_tiny(name, self.folder / f"tiny-{name}", **MODELS[name])
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=load_task(TaskConfig()).tokenizer(), eos_token="<eos>", pad_token="<pad>"
        )
        tokenizer.save_pretrained(folder)
        tree["model"]["path"] = str(folder)
        path.write_text(yaml.safe_dump(tree))
        return path


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MoeBench]:
    bench = MoeBench(tmp_path_factory.mktemp("architectures"))
    yield bench
    bench.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_experts_reach_the_generator(bench: MoeBench) -> None:
    cases = [{**bench.case(name, stage), "members": 1} for name in MODELS for stage in (0, 3)]
    for seen in bench.learn(1, cases):
        assert seen["dropped"] == []
        assert seen["behaviour_difference"] < TOLERANCE
        assert seen["canary_difference"] < TOLERANCE
        assert seen["versions_at_rest"] == [seen["version"]]

"""Wrong weights of every kind are found on real engines, right ones never taken for wrong: tied, untied, experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.cases.weight_proof import QUICK, Row, bench_of, measure
from benchmarks.rig.real_parts import write_model

COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 128,
    "max_position_embeddings": 512,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "tied": COMMON | {"model_type": "llama", "tie_word_embeddings": True},
    "untied, biases": COMMON | {"model_type": "qwen2", "tie_word_embeddings": False},
    "experts": COMMON | {
        "model_type": "qwen3_moe", "tie_word_embeddings": False, "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 64, "head_dim": 32, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_kind_of_wrong_weights_is_found(tmp_path: Path, name: str) -> None:
    model = write_model(tmp_path / "model", ARCHITECTURES[name], "float32")
    rows: list[Row] = []
    # Every tensor of the experts: their names are not the checkpoint's, and a fused layer holds many of them.
    counts = QUICK._replace(left_out=None) if name == "experts" else QUICK._replace(left_out=12)
    with bench_of(tmp_path, "proof", model, "float32") as bench:
        measure(bench, counts, rows.append)
    wrong = {row.kind: [each.share for each in row.tries] for row in rows if not row.is_right}
    assert wrong == {}
    assert {row.must_fail for row in rows} == {True, False}
    assert len(rows) == (10 if name == "tied" else 8)
    left_out = next(row for row in rows if row.kind == "first: one tensor left out")
    assert min(each.share for each in left_out.tries) > 3

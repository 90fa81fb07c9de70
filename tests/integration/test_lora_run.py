"""A short real run with adapters in bfloat16: vLLM takes merged weights and proves them; peft takes the adapters."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.common.errors import EXIT_REFUSED
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData, is_exact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 4
CONFIG: dict[str, Any] = {
    "run": {"name": "lora", "folder": "runs"},
    "model": {"path": "model", "dtype": "bfloat16"},
    "task": {"options": {"num_operations": 1, "num_digits": 1, "max_multiplier": 3}},
    "sampling": {"max_response_tokens": 16},
    "lora": {"rank": 8},
    "critic": {"sees_log_probs": True, "head": "hl_gauss", "num_bins": 21},
    "value_pretraining": {
        "num_trajectories": 32, "batch_size": 16, "max_steps": 2, "eval_every": 1, "held_out_fraction": 0.5,
        "min_explained_variance": -10.0,
    },
    "rl": {
        "num_steps": STEPS, "batch_size": 16, "group_size": 4, "actor_learning_rate": 1e-2,
        "critic_learning_rate": 1e-2,
    },
    "algorithm": {"num_mini_batches": 2, "kl_coefficient": 0.01},
    "learner": {"num_threads": 1, "device": "cpu", "checkpoint_every": 2},
    "generator": {
        "num_generators": 1, "max_in_flight": 16, "max_model_len": 96, "enforce_eager": True, "kv_cache_gib": 0.25,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunFolder]:
    root = tmp_path_factory.mktemp("lora")
    make_tiny_model(root / "model", 64)
    (root / "run.yaml").write_text(yaml.safe_dump(CONFIG))
    folder = RunFolder(root / "runs" / "lora")
    up(root)
    yield folder
    redis_server.socket_path(folder.redis).unlink(missing_ok=True)


def up(root: Path, *overrides: str, exit_code: int = 0) -> str:
    command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", "run.yaml", *overrides]
    done = subprocess.run(
        command, cwd=root, capture_output=True, text=True, timeout=500, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == exit_code, f"{done.stderr}\n{done.stdout[-4000:]}"
    return done.stdout + done.stderr


def events(run: RunFolder, name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, run.log_file("learner").read_text().splitlines())
    return [line for line in lines if line["event"] == name]


def test_each_update_was_proven_and_nobody_left(run: RunFolder) -> None:
    data = RunData.load(run)
    assert data.ledger is not None and is_exact(data.ledger) and data.ledger["rejected"] == 0
    assert events(run, "weights_proven")
    sent = events(run, "weights_broadcast")
    assert {each["policy_version"] for each in sent} == set(range(STEPS)) and not any(each["dropped"] for each in sent)
    rows = [row for row in read_metrics(run.metrics_file("learner")) if row["stage"] == "rl"]
    assert [row["policy/reference_version"] for row in rows] == [0] * STEPS


def test_the_checkpoint_and_the_critic_are_adapters_over_a_named_base(run: RunFolder) -> None:
    newest = run.checkpoints / f"step-{STEPS:06d}"
    bases = json.loads((newest / "base_models.json").read_text())
    assert bases["actor"]["path"] == "model" and bases["actor"] == bases["critic"]
    assert not list(run.value_pretraining.rglob("model.safetensors"))
    base_bytes = (run.path.parents[1] / "model" / "model.safetensors").stat().st_size
    weights = list(newest.rglob("*model_states.pt"))
    assert len(weights) == 2 and all(file.stat().st_size < base_bytes for file in weights)


def test_peft_computes_with_the_adapter_what_the_merged_export_does(run: RunFolder) -> None:
    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(run.path.parents[1] / "model", dtype=torch.float32)
    merged = AutoModelForCausalLM.from_pretrained(run.export, dtype=torch.float32)
    tokens = torch.arange(3, 15)[None]
    with torch.no_grad():
        before, expected = base(tokens).logits.log_softmax(-1), merged(tokens).logits.log_softmax(-1)
        found = PeftModel.from_pretrained(base, run.export / "adapter").eval()(tokens).logits.log_softmax(-1)
    moved, off = (before - expected).abs().mean(), (found - expected).abs().mean()
    assert off < moved / 4 and moved > 1e-3


def test_the_run_does_not_go_on_over_another_base(run: RunFolder) -> None:
    root = run.path.parents[1]
    file = root / "model" / "model.safetensors"
    save_file({name: 1.01 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
    said = up(root, f"rl.num_steps={STEPS + 2}", exit_code=EXIT_REFUSED)
    assert "belong to the model that was at model" in said

"""The cold start: a model of random weights learns, is written whole, loads elsewhere, and is not made twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.integration.rig.tiny import tiny_run
from tests.paths import ROOT
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import VcppoError
from vcppo.common.tasks import load_task
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.learner.cold_start.sft import MARKER, cold_start, fingerprint, main


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    tree = tiny_run(tmp_path, "sft-test")
    tree["sft"]["phases"] = [
        {"steps": 15, "batch_size": 16, "learning_rate": 0.01},
        {"steps": 5, "batch_size": 16, "learning_rate": 0.001, "style": {"long_sloppy": 1.0}},
    ]
    path.write_text(yaml.safe_dump(tree))
    return path


@pytest.fixture
def config(config_file: Path) -> VcppoConfig:
    return load_config(config_file)


def test_learns_and_is_written_whole(config: VcppoConfig) -> None:
    folder = cold_start(config)
    losses = [line["sft/loss"] for line in read_metrics(config.run.path / "metrics" / "sft.jsonl")]
    assert len(losses) == 20
    assert losses[-1] < 0.6 * losses[0]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.config.tie_word_embeddings
    assert abs(_loss(config, model, tokenizer) - losses[-1]) < 0.5
    assert json.loads((folder / MARKER).read_text())["hash"] == fingerprint(config)["hash"]
    assert not folder.with_name("cold_start.partial").exists()


def test_skipped_when_there_and_made_again_when_outdated(config: VcppoConfig, config_file: Path) -> None:
    weights = cold_start(config) / "model.safetensors"
    first = weights.stat().st_mtime_ns
    cold_start(config)
    assert weights.stat().st_mtime_ns == first
    cold_start(load_config(config_file, ["run.seed=1"]))
    assert weights.stat().st_mtime_ns != first


def test_same_seed_same_weights(config: VcppoConfig, config_file: Path, tmp_path: Path) -> None:
    first = (cold_start(config) / "model.safetensors").read_bytes()
    again = cold_start(load_config(config_file, [f"sft.output={tmp_path / 'again'}"]))
    assert (again / "model.safetensors").read_bytes() == first


def test_goes_on_from_a_model(config: VcppoConfig, config_file: Path, tmp_path: Path) -> None:
    start = cold_start(config)
    overrides = [f"sft.init={start}", "sft.architecture={}", "run.name=more"]
    cold_start(load_config(config_file, overrides))
    first = read_metrics(tmp_path / "more" / "metrics" / "sft.jsonl")[0]["sft/loss"]
    assert first < read_metrics(config.run.path / "metrics" / "sft.jsonl")[0]["sft/loss"]


def test_own_folder_is_not_overwritten(config: VcppoConfig) -> None:
    folder = config.run.path / "cold_start"
    folder.mkdir(parents=True)
    (folder / "thesis.tex").write_text("precious")
    with pytest.raises(VcppoError, match="is not a cold start"):
        cold_start(config)
    assert (folder / "thesis.tex").exists()


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sft.phases=[]", "sft.phases is empty"),
        ("sft.output={run}", "run folder itself"),
        ("sft.architecture={model_type: llama, hidden_size: many}", "hidden_size"),
        ("sft.architecture={model_type: llama, hiden_size: 32}", "sft.architecture.hiden_size"),
        ("sft.architecture={model_type: qwen2, hidden_size: 32, num_hidden_layers: 1}", "use llama"),
        ("sft.architecture={model_type: no_such_model}", "sft.architecture"),
        ("task={name: dataset, options: {path: tests/data/problems.jsonl}}", "tokenizer"),
        ("sft.init={run}/missing", "sft.init: .*missing has no tokenizer that can be loaded"),
    ],
)
def test_unusable_config_says_what_to_do(
    config_file: Path, override: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    overrides = [override.replace("{run}", str(config_file.parent / "sft-test"))]
    if "sft.init" in override:
        overrides.append("sft.architecture={}")
    with pytest.raises(VcppoError, match=says):
        cold_start(load_config(config_file, overrides))


def test_two_ranks_give_the_weights_of_one(config: VcppoConfig, config_file: Path, tmp_path: Path) -> None:
    one = AutoModelForCausalLM.from_pretrained(cold_start(config))
    output = tmp_path / "two"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [
        "-m",
        "vcppo.learner.cold_start.sft",
        "--config",
        str(config_file),
        f"sft.output={output}",
        "learner.zero_stage=3",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=True, timeout=240, capture_output=True)
    two = AutoModelForCausalLM.from_pretrained(output)
    for (name, ours), theirs in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
        torch.testing.assert_close(theirs, ours, atol=5e-3, rtol=0, msg=f"{name} differs")


def test_fatal_is_one_line(
    config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The other tests of this process go on using its process group, which DeepSpeed joins only once.
    monkeypatch.setattr("vcppo.learner.cold_start.process.shutdown_distributed", lambda: None)
    assert main(["--config", str(config_file), "sft.phases=[]", "logging.format=json"]) == 1
    (fatal,) = [line for line in capsys.readouterr().out.splitlines() if '"fatal"' in line]
    assert "sft.phases is empty" in json.loads(fatal)["error"]


def _loss(config: VcppoConfig, model: torch.nn.Module, tokenizer: object) -> float:
    """Mean -log p of response tokens by plain transformers, one demonstration at a time."""
    total, count = 0.0, 0
    for prompt, response in load_task(config.task).demonstrations(99, 16, {"long_sloppy": 1.0}):
        head = tokenizer(prompt)["input_ids"]  # type: ignore[operator]
        tail = [*tokenizer(response)["input_ids"], tokenizer.eos_token_id]  # type: ignore[operator, attr-defined]
        with torch.no_grad():
            log_probs = model(torch.tensor([head + tail])).logits[0].log_softmax(-1)
        total -= float(log_probs[len(head) - 1 : -1].gather(1, torch.tensor(tail)[:, None]).sum())
        count += len(tail)
    return total / count

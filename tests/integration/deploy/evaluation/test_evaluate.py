"""`vcppo eval` with real vLLM: killed in the middle, taken up by two generators, figures of every sample once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.common.config import dump_config, load_config
from vcppo.deploy.evaluation.known_benchmarks import as_overrides

NUM_PROBLEMS, NUM_SAMPLES = 6, 8
CONFIG = """
run: {{name: r, folder: {folder}}}
model: {{path: {folder}/model, dtype: float32}}
sampling: {{max_response_tokens: 48}}
generator: {{max_model_len: 96, max_in_flight: 2, kv_cache_gib: 0.05, enforce_eager: true}}
"""


def samples(folder: Path) -> list[dict[str, object]]:
    lines = [line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines()]
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:  # broken off by the kill
            continue
    return found


@pytest.mark.slow  # three starts of vLLM
def test_killed_and_taken_up_by_two_generators(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", hidden_size=64)
    (tmp_path / "c.yaml").write_text(CONFIG.format(folder=tmp_path))
    rows = [{"question": f"{i}A{i + 1}=", "answer": str(i)} for i in range(NUM_PROBLEMS)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = ["task.options.prompt_template='{question}'", f"eval.samples_per_problem={NUM_SAMPLES}", "eval.k=4"]
    config = load_config(tmp_path / "c.yaml", [*as_overrides("jsonl", str(tmp_path / "p.jsonl")), *mine])
    results = tmp_path / "r" / "eval" / "jsonl"
    results.mkdir(parents=True)
    (results / "first.yaml").write_text(dump_config(config))
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}

    one = [sys.executable, "-m", "vcppo.generator.evaluation.evaluate", "--config", str(results / "first.yaml")]
    one += ["--model", str(tmp_path / "model"), "--output", str(results / "model.json")]
    log = tmp_path / "victim.log"
    with log.open("wb") as file:
        victim = subprocess.Popen(one, cwd=ROOT, env=environment, stdout=file, stderr=file)
    deadline = time.monotonic() + 200
    while len(samples(results / "model.samples")) < 5:
        assert victim.poll() is None, f"ended before it could be killed: {log.read_text()[-3000:]}"
        assert time.monotonic() < deadline, "no samples in 200 s"
        time.sleep(0.002)
    victim.kill()
    victim.wait(10)
    before = samples(results / "model.samples")
    assert 5 <= len(before) < NUM_PROBLEMS * NUM_SAMPLES
    assert not (results / "model.json").exists()

    command = [sys.executable, "-m", "vcppo.deploy.cli", "eval", "-c", str(tmp_path / "c.yaml"), "--benchmark", "jsonl"]
    command += ["--data", str(tmp_path / "p.jsonl"), "--model", str(tmp_path / "model"), "--generators", "2", *mine]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = samples(results / "model.samples")
    assert set(Counter((each["problem"], each["sample"]) for each in after).values()) == {1}
    assert len(after) == NUM_PROBLEMS * NUM_SAMPLES
    assert [each for each in after if each in before] and all(each in after for each in before)
    assert {path.name.split(".")[1] for path in (results / "model.samples").glob("*.jsonl")} == {"0", "1"}
    figures = json.loads((results / "model.json").read_text())
    assert (figures["num_problems"], figures["num_samples"], figures["k"]) == (
        NUM_PROBLEMS,
        NUM_PROBLEMS * NUM_SAMPLES,
        4,
    )
    records = [json.loads(line) for line in (results / "model.jsonl").read_text().splitlines()]
    assert [len(record["outcomes"]) for record in records] == [NUM_SAMPLES] * NUM_PROBLEMS
    assert "pass@4" in done.stdout

    again = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert again.returncode == 0 and "engine_ready" not in again.stdout + again.stderr
    assert samples(results / "model.samples") == after

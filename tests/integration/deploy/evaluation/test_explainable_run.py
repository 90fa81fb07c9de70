"""`vcppo explainable` with real vLLM and DeepSpeed, on a checkpoint: whose weights answer, from where, whose values."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from tests.integration.rig.scripted import make_tiny_model
from tests.paths import ROOT
from vcppo.common.evaluation.continuations import ContinuationFiles, Continued, Response, Wanted
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.evaluation.explainable_results import read_rows

STEP, NUM, LONGEST = 20, 6, 14
# The verdict hangs on the whole response, and nearly all of them on different ones.
TASK = """
from zlib import crc32

from vcppo import Verdict
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic


class ByChecksum(ChainArithmetic):
    def verify(self, answer, response, finish_reason):
        return Verdict("correct" if crc32(response.encode()) % 2 else "wrong", response)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("explainable")
    make_tiny_model(folder / "model", hidden_size=64)
    (folder / "by_checksum.py").write_text(TASK)
    tree = {
        "run": {"name": "r", "folder": str(folder)},
        "model": {"path": str(folder / "model"), "dtype": "float32"},
        "task": {"name": "by_checksum:ByChecksum", "options": {"num_operations": 2}},
        # As good as greedy: what is continued from anywhere ends like the response itself.
        "sampling": {"max_response_tokens": LONGEST, "temperature": 0.001},
        "critic": {"init": "policy"},
        "value_pretraining": {"num_trajectories": 0},
        "generator": {"max_model_len": 64, "max_in_flight": 8, "kv_cache_gib": 0.05, "enforce_eager": True},
        "learner": {"device": "cpu", "num_threads": 1, "micro_batch_tokens": 128},
        "logging": {"tensorboard": False},
    }
    made = RunFolder(folder / "r").create()
    made.config.write_text(yaml.safe_dump(tree))
    started([sys.executable, "-m", "tests.integration.rig.checkpoint_maker", str(made.config), str(STEP)], folder)
    return made


def started(command: list[str], folder: Path) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{folder}"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def explainable(run: RunFolder, *words: str) -> str:
    command = [sys.executable, "-m", "vcppo.deploy.cli", "explainable", str(run.path), "--responses", str(NUM), *words]
    return started(command, run.path.parent)


def records(run: RunFolder) -> Continued:
    (plan,) = {path.name.split(".")[0] for path in run.explainable.glob("*.0.jsonl")}
    return ContinuationFiles(run.explainable, plan).read()


def behind_the_best(model: Any, response: Response) -> float:
    """The largest gap between the logit of a token of the response and the largest logit there."""
    with torch.no_grad():
        logits = model(torch.tensor([[*response.prompt, *response.tokens]])).logits[0, len(response.prompt) - 1 : -1]
    chosen = logits[torch.arange(len(response.tokens)), torch.tensor(response.tokens)]
    return float((logits.max(dim=-1).values - chosen).max())


@pytest.mark.slow  # vLLM twice, DeepSpeed five times
@pytest.mark.timeout(900)
def test_the_checkpoint_s_policy_goes_on_from_its_own_tokens_and_its_critic_is_asked(run: RunFolder) -> None:
    shown = json.loads(explainable(run, "--positions", "3,8", "--continuations", "2", "--json"))
    found, wanted = records(run), Wanted(NUM, (0, 3, 8), 2)
    assert found.is_complete(wanted)

    actor = AutoModelForCausalLM.from_pretrained(run.path / "actor_of_step").eval()
    before = AutoModelForCausalLM.from_pretrained(run.path.parent / "model").eval()
    responses = [found.responses[problem] for problem in range(NUM)]
    assert max(behind_the_best(actor, each) for each in responses) < 0.02
    assert min(behind_the_best(before, each) for each in responses) > 0.1
    of = [(found.responses[each.problem], each) for each in found.continuations.values()]
    same = [(e.length, e.outcome) == (len(whole.tokens) - e.position, whole.outcome) for whole, e in of]
    assert np.mean(same) > 0.8  # all, but for two tokens that are as likely to the last digit

    critic = AutoModelForSequenceClassification.from_pretrained(run.path / "critic_of_step", num_labels=1).eval()
    (path,) = run.explainable.glob("*.values.json")
    values = json.loads(path.read_text())["values"]
    for each in responses:
        for position in (0, 3, 8):
            if position < len(each.tokens):
                prefix = torch.tensor([[*each.prompt, *each.tokens[:position]]])
                with torch.no_grad():
                    expected = float(critic.score(critic.model(prefix).last_hidden_state[0, -1]))
                assert values[str(each.problem)][str(position)] == pytest.approx(expected, abs=1e-4)
    assert np.std([float(v["0"]) for v in values.values()]) > 0.01

    assert {each.outcome for each in responses} == {"correct", "wrong"}  # else the figures below say nothing
    assert [row["position"] for row in shown["rows"]] == [0, 3, 8]
    assert all(row["explainable"] > 0.4 and row["version"] == STEP for row in shown["rows"])
    assert all(row["explained"] is not None for row in shown["rows"])
    assert not list(run.explainable.glob("policy-*"))

    # More of it: what is there is not made again.
    lines = sorted(run.explainable.glob("*.jsonl"))
    known = {path: path.read_bytes() for path in lines}
    said = explainable(run, "--positions", "3,5", "--continuations", "3")
    assert records(run).is_complete(Wanted(NUM, (0, 3, 5), 3))
    for path, content in known.items():
        assert path.read_bytes().startswith(content)
    assert "continuations_resumed" in said and [row.position for row in read_rows(run)] == [0, 3, 5, 8]

    # All of it there: no process is started, so it needs neither weights nor vLLM.
    (run.checkpoints / f"step-{STEP:06d}" / "actor").rename(run.path / "away")
    again = explainable(run, "--positions", "3,5", "--continuations", "3")
    assert "continue_responses" not in again and "engine_ready" not in again
    shutil.move(run.path / "away", run.checkpoints / f"step-{STEP:06d}" / "actor")

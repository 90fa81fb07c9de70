"""A short real run whose agent is an environment of the real package `verifiers`, in a Python of its own, with tools.

`make verifiers-test` makes that Python, or VCPPO_VERIFIERS_PYTHON names one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.rig.scripted import make_tiny_model
from tests.integration.test_graded_run import CONFIG
from tests.paths import ROOT
from tests.unit.generator.turns.test_verifiers_agents import PYTHON
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trained_log import check_trained_once
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData, is_exact

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: make verifiers-test"),
]

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
MODULE = """
import verifiers as vf
from datasets import Dataset


def digits(completion):
    said = [each.content or "" for each in completion if each.role == "assistant"]
    return sum(letter.isdigit() for letter in said[-1]) / 8 if said else 0.0


class Sums(vf.MultiTurnEnv):
    async def env_response(self, messages, state, **given):
        return [{"role": "user", "content": "+1"}]


def load_environment(count):
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": f"{i}+1"}]} for i in range(count)])
    return Sums(max_turns=2, dataset=rows, rubric=vf.Rubric(funcs=[digits]))
"""


def test_an_environment_of_verifiers_is_trained(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 64)
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "sums_env.py").write_text(MODULE)
    options = {"python": str(PYTHON), "environment": "sums_env", "options": {"count": 10}, "held_out_fraction": 0.3}
    config = (
        CONFIG
        | {"run": {"name": "agents", "folder": "runs"}, "task": {"name": "verifiers", "options": options}}
        | {"eval": {"every": 1, "num_problems_during_training": 2}}
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    folder = RunFolder(tmp_path / "runs" / "agents")
    command = [sys.executable, "-m", "vcppo.deploy.cli"]
    where = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}
    try:
        done = subprocess.run(
            [*command, "up", "-c", "run.yaml"], capture_output=True, text=True, timeout=500, check=False, **where
        )
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-4000:]}"
    finally:
        redis_server.socket_path(folder.redis).unlink(missing_ok=True)
    recorded = list(read_trajectories(folder.value_pretraining / RECORD_FILE))
    tables = [SampleTable(path) for path in sorted(folder.samples.glob("step-*"))]
    heads = [head for table in tables for head in table.heads()]
    assert len(recorded) == len(heads) == 32
    for each in recorded:  # one segment: the environment's messages go on from the policy's, token by token
        assert not each.segments and each.num_turns in (1, 2) and 0 <= each.reward <= 1
        assert bool(each.action_mask.all()) == (each.num_turns == 1)
        assert each.num_turns == 2 or len(each.response_token_ids) > 11  # the first left no room for "+1=" and a token
        assert len(each.behaviour_log_probs) == len(each.response_token_ids)
    assert sum(each.num_turns == 2 for each in recorded) > 4
    assert len({each.reward for each in recorded}) > 1
    assert all(head["turns"] in (1, 2) and not head["segment"] for head in heads)
    assert check_trained_once(folder.trained_log, max_staleness=1) == 32
    data = RunData.load(folder)
    assert data.ledger is not None and is_exact(data.ledger) and data.ledger["rejected"] == 0


def test_check_tells_of_a_python_without_verifiers(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 64)
    options = {"python": sys.executable, "environment": "sums_env"}
    config = CONFIG | {"task": {"name": "verifiers", "options": options}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = subprocess.run(
        [sys.executable, "-m", "vcppo.deploy.cli", "check", "-c", "run.yaml"],
        capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode != 0
    assert f"{sys.executable} -m pip install 'verifiers'" in done.stdout.replace("\n", " ")

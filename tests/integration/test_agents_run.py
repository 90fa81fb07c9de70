"""A short real run of an agent that asks real vLLM over two turns, now and then in a second conversation.

Strangers ask too, and get nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.rig.scripted import make_tiny_model
from tests.integration.test_graded_run import CONFIG
from tests.paths import ROOT
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.segments import split
from vcppo.common.records.trained_log import check_trained_once, read_trained_log
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData, is_exact

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

TEMPLATE = (
    "{% for m in messages %}{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}={% endif %}"
)
MODULE = """
import json

import httpx
import openai

from vcppo import Agent, Problem

used_up = []


class Adding(Agent):
    def problems(self, split, seed, start, count):
        return [Problem([{"role": "user", "content": "1+1"}], {"left": i % 10}) for i in range(start, start + count)]

    async def run(self, answer, endpoint):
        client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, max_retries=0, timeout=60)
        chat = [{"role": "user", "content": f"{answer['left']}+1"}]
        for more in ("+2", "+3"):
            made = await client.chat.completions.create(model=endpoint.model, messages=chat, max_tokens=5)
            chat += [made.choices[0].message, {"role": "user", "content": more}]
        await self.ask_as_a_stranger(endpoint)
        if answer["left"] % 3 == 0:  # it rewrites its conversation, and asks once more
            chat = [{"role": "user", "content": f"{len(chat)}+4"}]
            made = await client.chat.completions.create(model=endpoint.model, messages=chat, max_tokens=5)
        return sum(letter.isdigit() for letter in made.choices[0].message.content) / 5

    async def ask_as_a_stranger(self, endpoint):
        url, found = endpoint.base_url + "/chat/completions", []
        keys = ["", "sk-mine", endpoint.api_key[:-64] + 64 * "0", "vcppo-000000000000-1-" + 64 * "0", *used_up[:1]]
        async with httpx.AsyncClient() as client:
            for key in keys:
                headers = {"Authorization": f"Bearer {key}"} if key else {}
                body = {"messages": [{"role": "user", "content": "1"}]}
                found.append((await client.post(url, headers=headers, json=body)).json()["error"]["code"])
        used_up.insert(0, endpoint.api_key) if len(used_up) < 1 else None
        with open("strangers.jsonl", "a") as file:
            file.write(json.dumps(found) + chr(10))
"""


def assert_conversations(found: list[tuple[int, int]]) -> None:
    """(turns of the conversation that ended last, others) of each rollout: one of two turns, or one of one after it."""
    assert len(found) == 32 and {(2, 0), (1, 1)} == set(found)


def assert_trained_as_rollouts(folder: RunFolder, trained: list[tuple[dict[str, Any], Any]]) -> None:
    """Every conversation is trained, with its rollout's reward, and a rollout counts once."""
    rewards: dict[str, set[float]] = {}
    for head, tokens in trained:
        rewards.setdefault(head["prompt_id"], set()).add(head["reward"])
        assert any(tokens["is_trained"]) and tokens["value_targets"][-1] == pytest.approx(head["reward"])
    assert len(rewards) == 32 and all(len(found) == 1 for found in rewards.values())
    assert check_trained_once(folder.trained_log, max_staleness=1) == 32
    lines = read_trained_log(folder.trained_log).values()
    named = [name for line in lines for name in (*line["trajectory_ids"], *line["segment_ids"])]
    assert sorted(named) == sorted(head["id"] for head, _ in trained)
    data = RunData.load(folder)
    assert data.ledger is not None and data.ledger["rejected"] == 0 and is_exact(data.ledger)
    assert (data.ledger["issued"], data.ledger["trained"], data.ledger["evaluated"]) == (72, 64, 8)
    assert [(row["step"], row["eval/num_problems"]) for row in data.evaluations] == [(1, 4), (2, 4)]
    (first, second) = (row for row in read_metrics(folder.metrics_file("learner")) if row["stage"] == "rl")
    assert (first["reward/num_responses"], second["reward/num_responses"]) == (16, 16)
    assert 1 < first["turns/segments"] <= first["turns/segments_max"] == 2


def test_an_agent_is_trained_and_strangers_get_nothing(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 64)
    (tmp_path / "model" / "chat_template.jinja").write_text(TEMPLATE)
    (tmp_path / "my_agent.py").write_text(MODULE)
    config = (
        CONFIG
        | {"run": {"name": "agents", "folder": "runs"}, "task": {"name": "my_agent:Adding"}}
        | {"eval": {"every": 1, "num_problems_during_training": 4}}
    )
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    folder = RunFolder(tmp_path / "runs" / "agents")
    command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", "run.yaml"]
    try:
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=500, check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, f"{done.stderr}\n{done.stdout[-4000:]}"
    finally:
        redis_server.socket_path(folder.redis).unlink(missing_ok=True)
    tables = [SampleTable(path) for path in sorted(folder.samples.glob("step-*"))]
    trained = [(head, table.tokens(number)) for table in tables for number, head in enumerate(table.heads())]
    recorded = list(read_trajectories(folder.value_pretraining / RECORD_FILE))
    assert len(recorded) == 32
    assert_conversations([(each.num_turns, len(each.segments)) for each in recorded])
    each_alone = [each for rollout in recorded for each in split(rollout)]
    assert all(1 <= len(each.response_token_ids) <= 16 and 0 <= each.reward <= 1 for each in each_alone)
    assert all(bool(each.action_mask.all()) == (each.num_turns == 1) for each in each_alone)
    others = [head for head, _ in trained if head["segment"]]
    assert_conversations(
        [
            (head["turns"], sum(other["prompt_id"] == head["prompt_id"] for other in others))
            for head, _ in trained
            if not head["segment"]
        ]
    )
    assert all(head["turns"] == 2 and head["id"].endswith("#1") for head in others)
    assert all(1 <= len(tokens["token_ids"]) <= 16 and 0 <= head["reward"] <= 1 for head, tokens in trained)
    assert all((None not in tokens["turn"]) == (head["turns"] == 1) for head, tokens in trained)
    assert len({head["prompt"] for head, _ in trained}) > 4  # the agent's own, not the one issued
    assert_trained_as_rollouts(folder, trained)
    rows = list(read_metrics(folder.metrics_file("generator-0")))
    asked, anew = (sum(row[f"generator/{name}"] or 0 for row in rows) for name in ("agent_requests", "segments"))
    assert asked == 2 * 64 + anew and anew == len(others) + sum(len(each.segments) for each in recorded)
    refused = [json.loads(line) for line in (tmp_path / "strangers.jsonl").read_text().splitlines()]
    wrong = ["no_key", "wrong_key", "wrong_key", "another_incarnation"]
    assert all(each[:4] == wrong and set(each[4:]) <= {"session_over"} for each in refused)
    assert ["session_over"] in [each[4:] for each in refused]

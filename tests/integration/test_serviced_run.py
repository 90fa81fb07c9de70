"""A short real run on a reward service that goes away in the middle: what was trained has the service's rewards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from tests.integration.rig.reward_server import RewardServer, reward_of
from tests.integration.rig.scripted import make_tiny_model
from tests.integration.test_graded_run import CONFIG
from tests.paths import ROOT
from vcppo.common.config import load_config
from vcppo.common.records.sample_table import SampleTable
from vcppo.common.records.trajectory_records import read_trajectories
from vcppo.common.run_folder import RECORD_FILE, RunFolder
from vcppo.common.telemetry.metrics import read_metrics
from vcppo.deploy.processes import redis_server
from vcppo.deploy.run.run_data import RunData

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AWAY_SECONDS = 10.0


def test_a_run_whose_service_goes_away_and_comes_back(tmp_path: Path) -> None:
    make_tiny_model(tmp_path / "model", 64)
    server = RewardServer()
    source = {"url": f"{server.url}/reward", "batch_size": 4, "breaker_seconds": 0.5, "back_off_seconds": 0.1}
    task = {"options": CONFIG["task"]["options"], "reward_service": source}  # type: ignore[index]
    config = CONFIG | {"run": {"name": "serviced", "folder": "runs"}, "task": task}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    folder = RunFolder(tmp_path / "runs" / "serviced")
    command = [sys.executable, "-m", "vcppo.deploy.cli", "up", "-c", "run.yaml"]
    with (tmp_path / "said.log").open("wb") as said:
        up = subprocess.Popen(
            command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=said, stderr=said
        )
    try:
        while len(server.requests) < 3:
            assert up.poll() is None, (tmp_path / "said.log").read_text()[-4000:]
            time.sleep(0.05)
        server.down()
        time.sleep(AWAY_SECONDS)
        server.up()
        assert up.wait(400) == 0, (tmp_path / "said.log").read_text()[-4000:]
    finally:
        up.kill()
        server.close()
        redis_server.socket_path(folder.redis).unlink(missing_ok=True)
    rule = load_config(folder.config).reward_rule
    recorded = list(read_trajectories(folder.value_pretraining / RECORD_FILE))
    for each in recorded:
        assert each.reward == reward_of(each.prompt_id) and each.outcome not in ("timeout", "crash")
        rule.check(each.outcome, each.reward, each.components, len(each.response_token_ids))
    trained = [head for path in sorted(folder.samples.glob("step-*")) for head in SampleTable(path).heads()]
    assert (len(recorded), len(trained)) == (32, 32)
    for head in trained:
        assert head["reward"] == reward_of(head["prompt_id"]) and head["outcome"] not in ("timeout", "crash")
    ledger = RunData.load(folder).ledger
    assert ledger is not None and ledger["rejected"] == 0
    rows = [row for row in read_metrics(folder.metrics_file("generator-0")) if "reward_source/away" in row]
    assert max(row["reward_source/away"] for row in rows) > 3 and rows[-1]["reward_source/away"] == 0

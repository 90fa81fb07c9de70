"""Each tracker with its own library: an MLflow server, trackio's store, wandb's offline files. See `make extras-test`.

A run is told, ends, and is resumed by another process' sink: it goes on in the same run of the tracker, no step twice.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rig.learner_samples import VOCAB, mixed_batch
from tests.unit.rig.written_samples import write_step
from vcppo.common.config import VcppoConfig
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import open_metrics
from vcppo.common.trackers import feed
from vcppo.common.trackers.tracker import TrackedRun
from vcppo.common.trackers.trackio_tracker import TrackioTracker
from vcppo.common.transport.ports import free_port

pytestmark = pytest.mark.slow

SERVER_SECONDS = 90


def config(folder: Path, **metrics: Any) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {"run": {"name": "r", "folder": folder}, "model": {"path": "m"}, "logging": {"tensorboard": False},
         "metrics": {"tracker_samples": 2, **metrics}}
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries take seconds to import on a busy machine."""
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 60.0)


def run_twice(made: VcppoConfig) -> None:
    """Steps 1 to 3; then, as after a crash, 3 again and 4.

    W&B's folder of an offline run has its name by the second: within one, the second life would write over the first.
    """
    for steps in ((1, 2, 3), (3, 4)):
        writer = open_metrics(made, "learner", "steps_of_run")
        for step in steps:
            writer.write(step, {"reward/mean": step / 10, "undefined": float("nan"), "stage": "rl", "curve": [1.0]})
            write_step(RunFolder(made.run.path).samples, step, mixed_batch(step, 3), [f"w{n}" for n in range(VOCAB)])
        writer.close()
        closed = int(time.time())
        while int(time.time()) == closed:
            time.sleep(0.01)


# MLflow


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real one, of the package `mlflow`, which has what its client has not."""
    pytest.importorskip("mlflow", reason="the optional extra vcppo[mlflow] is not installed")
    if find_spec("sqlalchemy") is None:
        pytest.skip("mlflow-skinny alone has no server")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # it starts in half the time
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        wait_for(uri, server, folder / "log")
        yield uri
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def wait_for(uri: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SERVER_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=5).close()  # noqa: S310  (ours)
        except OSError:
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"no MLflow server: {log.read_text()[-2000:]}")


def test_mlflow_goes_on_in_the_same_run(tmp_path: Path, mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    made = config(tmp_path, mlflow_experiment="e", mlflow_uri=mlflow_server)
    run_twice(made)
    client = MlflowClient(mlflow_server)
    experiment = client.get_experiment_by_name("e")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "r/learner")
    assert run.data.params["rl.num_steps"] == str(made.rl.num_steps)
    assert (run.data.tags["vcppo.run"], run.data.tags["vcppo.service"]) == ("r", "learner")
    history = client.get_metric_history(run.info.run_id, "reward/mean")
    assert [(each.step, each.value) for each in history] == [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]
    assert "undefined" not in run.data.metrics
    tables = [each.path for each in client.list_artifacts(run.info.run_id, "samples")]
    assert tables == [f"samples/step-00000{step}.json" for step in (1, 2, 3, 4)]
    table = client.load_table(experiment.experiment_id, "samples/step-000002.json", [run.info.run_id])
    assert list(table.columns) == ["id", "prompt", "response", "reward", "outcome", "value_at_start"]
    assert len(table) == 2


def test_a_setting_that_changes_later_is_a_tag_of_mlflow(tmp_path: Path, mlflow_server: str) -> None:
    from mlflow.tracking import MlflowClient

    made = config(tmp_path, mlflow_experiment="changes", mlflow_uri=mlflow_server)
    for step, num_steps in ((1, 10), (2, 77)):
        here = made.model_copy(update={"rl": made.rl.model_copy(update={"num_steps": num_steps})})
        writer = open_metrics(here, "learner", "steps_of_run")
        writer.write(step, {"reward/mean": 1})
        writer.close()
    client = MlflowClient(mlflow_server)
    (run,) = client.search_runs([client.get_experiment_by_name("changes").experiment_id])
    assert run.data.params["rl.num_steps"] == "10"
    changes = {name: value for name, value in run.data.tags.items() if name.startswith("changed.")}
    assert changes == {"changed.rl.num_steps": "77"}


def test_what_an_mlflow_server_missed_is_sent_at_the_next_start(
    tmp_path: Path, mlflow_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow.tracking import MlflowClient

    run_twice(config(tmp_path, mlflow_experiment="late", mlflow_uri=f"http://127.0.0.1:{free_port()}"))
    said = capsys.readouterr().out
    assert said.count("tracker_away") == 2  # once each start
    assert "tracker=mlflow" in said
    open_metrics(
        config(tmp_path, mlflow_experiment="late", mlflow_uri=mlflow_server), "learner", "steps_of_run"
    ).close()
    client = MlflowClient(mlflow_server)
    (run,) = client.search_runs([client.get_experiment_by_name("late").experiment_id])
    assert [each.step for each in client.get_metric_history(run.info.run_id, "reward/mean")] == [1, 2, 3, 4]


# trackio


def check_stored_at_once(folder: Path) -> None:
    """What was told survives a kill in the same moment."""
    tracker = TrackioTracker("kills")
    tracker.open(TrackedRun("k", "r", "learner", folder))
    from trackio.sqlite_storage import SQLiteStorage

    for step in range(1, 6):
        tracker.log(step, {"a": step}, 0.0)
        assert [line["step"] for line in SQLiteStorage.get_logs("kills", "k")] == list(range(1, step + 1))
    tracker.close()


def test_trackio_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("trackio") is None:
        pytest.skip("the optional extra vcppo[trackio] is not installed")
    assert "trackio" not in sys.modules  # it reads TRACKIO_DIR when it is imported
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    check_stored_at_once(tmp_path)
    run_twice(config(tmp_path, trackio_project="p"))
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (run,) = trackio.Api().runs("p")
    name, settings, lines = run.name, run.config, SQLiteStorage.get_logs("p", run.name)
    assert name.startswith("r-learner-")
    assert (settings["run_id"], settings["service"], settings["rl.batch_size"]) == ("r", "learner", 128)
    numbers = {line["step"]: line["reward/mean"] for line in lines if "reward/mean" in line}
    assert numbers == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert Counter("reward/mean" in line for line in lines) == {True: 4, False: 4}
    tables = {line["step"]: line["samples"]["_value"] for line in lines if "samples" in line}
    assert tables.keys() == {1, 2, 3, 4}
    assert list(tables[1][0]) == ["id", "prompt", "response", "reward", "outcome", "value_at_start"]
    assert len(tables[1]) == 2


# Weights & Biases


def test_wandb_goes_on_in_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the optional extra vcppo[wandb] is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_twice(config(tmp_path, wandb_project="p"))
    files = sorted(tmp_path.rglob("run-*.wandb"))
    (name,) = {re.sub(r"^run-|\.wandb$", "", path.name) for path in files}
    assert re.fullmatch(r"r-learner-[0-9a-f]{8}", name)
    steps = [step for path in files for step in logged_steps(path)]
    assert steps == [1, 2, 3, 4]
    assert len(list(tmp_path.rglob("media/table/samples_*.table.json"))) == 4


def logged_steps(path: Path) -> list[int]:
    """Steps of the lines that have the reward, out of wandb's own file."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for data in leveldb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        line = {".".join(each.nested_key) or each.key: each.value_json for each in record.history.item}
        if "reward/mean" in line:
            steps.append(int(json.loads(line["step"])))
    return steps


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """Of LevelDB's log format: blocks of 32 KiB, parts with a header of 7 bytes; wandb's own header first."""
    at, whole = 7, b""
    while at + 7 <= len(content):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15  # no header fits in the rest of this block
            continue
        _, size, kind = struct.unpack("<IHB", content[at : at + 7])
        whole += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield whole
            whole = b""

"""The launcher with a real Redis: durable, private, found again, and the `vcppo` program's behaviour on bad input."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.paths import RIG, ROOT
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import dump_config, load_config
from vcppo.common.files.json_lines import JsonLinesTail
from vcppo.common.records.trajectory import Prompt
from vcppo.common.store.access import connect_store
from vcppo.common.store.run_store import RunStore
from vcppo.common.transport import TrajectorySender
from vcppo.common.transport.endpoints import endpoints_of
from vcppo.common.transport.ports import free_endpoint, free_port
from vcppo.deploy.cli import main
from vcppo.deploy.logs.log_lines import LogSink
from vcppo.deploy.processes import redis_server
from vcppo.deploy.processes.supervisor import Supervisor


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    with Supervisor(LogSink(tmp_path / "logs", "r"), stop_deadline_seconds=10, start_deadline_seconds=30) as each:
        yield each


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").touch()
    config = config_of(tmp_path / "runs", "r")
    path = tmp_path / "r.yaml"
    path.write_text(dump_config(config).replace("path: model", f"path: {tmp_path / 'model'}"))
    return path


def prompt(index: int) -> Prompt:
    return Prompt(
        id=f"rl-{index}", group_id=f"g-{index}", sample_index=0, task="t", token_ids=np.array([1, 2], np.int32),
        answer={}, seed=index, issue_version=0, purpose="rl", max_response_tokens=8,
    )  # fmt: skip


def vcppo(*words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vcppo.deploy.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)


def test_embedded_redis_keeps_everything_over_sigkill(
    supervisor: Supervisor, config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "runs" / "r" / "redis"
    child = supervisor.start(redis_server.redis_spec(data))
    supervisor.wait_ready(["redis"])
    assert redis_server.is_running(data)
    with pytest.raises(redis_server.RedisUnavailable, match="already serves"):
        redis_server.redis_spec(data)
    store = RunStore.connect(redis_server.url(data), "r", 5)
    assert store.issue([prompt(index) for index in range(5)]) == 5
    store.lease("generator-0", 2, 60, 1)
    assert main(["ledger", "-c", str(config_file)]) == 0  # of the running server
    child.stopping = True  # its end is ours
    os.kill(child.pid, signal.SIGKILL)
    supervisor.wait(lambda: child.exit_code is not None)

    assert not redis_server.is_running(data)
    before = {path.name: path.read_bytes() for path in data.iterdir() if path.is_file()}
    assert main(["ledger", "-c", str(config_file)]) == 0  # of its files, through a copy
    out = capsys.readouterr().out
    assert out.count("exact") == 2
    assert "issued" in out
    assert {path.name: path.read_bytes() for path in data.iterdir() if path.is_file()} == before

    supervisor.start(redis_server.redis_spec(data))
    supervisor.wait_ready(["redis"])
    ledger = RunStore.connect(redis_server.url(data), "r", 5).ledger()
    assert (ledger.issued, ledger.queued, ledger.leased) == (5, 3, 2)


class TestTwoRuns:
    """Two runs on one machine, at once, with nothing set."""

    @pytest.fixture
    def runs(self, config_file: Path, tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        processes = {}
        for name in ("one", "two"):
            own = tmp_path / f"{name}.yaml"
            own.write_text(config_file.read_text().replace("name: r\n", f"name: {name}\n"))
            command = [sys.executable, str(RIG / "bare_launcher.py"), str(own), str(tmp_path / "go")]
            with (tmp_path / f"{name}.log").open("wb") as log:
                processes[name] = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=ROOT)
        yield processes
        for process in processes.values():
            process.terminate()
            process.wait(60)

    def wait_for(self, log: Path, event: str, count: int = 1) -> list[dict[str, Any]]:
        tail, found = JsonLinesTail(log), []
        deadline = time.monotonic() + 90
        while len(found) < count:
            assert time.monotonic() < deadline, f"{log}: waited for {count} of {event}"
            found += [record for record in tail.read() if record["event"] == event]
            time.sleep(0.05)
        return found

    def test_each_has_its_own_port_and_its_buffer_keeps_it(
        self, runs: dict[str, subprocess.Popen[bytes]], tmp_path: Path
    ) -> None:
        for name in runs:
            self.wait_for(tmp_path / f"{name}.log", "learner_ready")
        configs = {name: load_config(tmp_path / "runs" / name / "config.yaml", []) for name in runs}
        endpoints = {name: endpoints_of(config) for name, config in configs.items()}  # as a generator by hand would
        assert all(config.transport.endpoints is None for config in configs.values())
        assert endpoints["one"] != endpoints["two"]
        log = tmp_path / "runs" / "one" / "logs" / "launcher.jsonl"
        (buffer,) = [record for record in self.wait_for(log, "process_started", 3) if record["process"] == "buffer"]
        self.wait_for(tmp_path / "runs" / "one" / "logs" / "buffer.jsonl", "ready")  # a learner does not wait for it
        os.kill(buffer["pid"], signal.SIGKILL)
        self.wait_for(tmp_path / "runs" / "one" / "logs" / "buffer.jsonl", "ready", 2)
        assert endpoints_of(configs["one"]) == endpoints["one"]
        for name, config in configs.items():
            sender = TrajectorySender(endpoints[name], "g", config.transport, tmp_path / f"spool-{name}")
            sender.send("id", b"no trajectory, but received, judged and acknowledged")
            assert sender.drain(30)
            sender.close()
            assert connect_store(config).num_dead_letters() == 1
        (tmp_path / "go").touch()
        assert [process.wait(60) for process in runs.values()] == [0, 0]


class TestBadInput:
    """One clear line, a non-zero exit, no hang; nothing is left running."""

    def fails(self, done: subprocess.CompletedProcess[str], *said: str) -> None:
        assert done.returncode in (1, 2)
        assert "Traceback" not in done.stderr + done.stdout
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        assert len(lines) == 1
        for each in said:
            assert each in lines[0]

    def test_config_typo(self, config_file: Path) -> None:
        self.fails(vcppo("up", "-c", str(config_file), "rl.nmu_steps=3"), "rl.nmu_steps", "rl.num_steps")

    def test_unknown_model_path(self, config_file: Path) -> None:
        self.fails(vcppo("up", "-c", str(config_file), "model.path=/no/such/model"), "model.path: /no/such/model")

    def test_port_in_use(self, config_file: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
            self.fails(vcppo("up", "-c", str(config_file), f"transport.endpoints=[{endpoint}]"), endpoint)

    def test_no_redis(self, config_file: Path) -> None:
        port = free_port()
        self.fails(vcppo("up", "-c", str(config_file), f"redis.url=redis://127.0.0.1:{port}/0"), f"127.0.0.1:{port}")

    def test_a_process_that_can_not_start_stops_the_run_by_name(self, config_file: Path, tmp_path: Path) -> None:
        """The model folder passes the first look and is no model: the generator or the learner says so."""
        endpoint = free_endpoint()
        started = time.monotonic()
        done = vcppo("up", "-c", str(config_file), f"transport.endpoints=[{endpoint}]", timeout=200)
        assert done.returncode in (2, 3)  # no restart could mend it
        assert done.stderr.startswith("vcppo: ")
        assert "ended with exit code" in done.stderr
        assert time.monotonic() - started < 180
        assert not redis_server.is_running(tmp_path / "runs" / "r" / "redis")
        for line in done.stdout.splitlines():
            json.loads(line)  # without a terminal, `up` speaks JSON lines

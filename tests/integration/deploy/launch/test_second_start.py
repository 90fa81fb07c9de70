"""A run is started again beside the remains of its earlier start: refused on the same host, the winner on another."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import RedisServer
from tests.integration.learner.buffer.test_buffer import eventually
from tests.paths import RIG, ROOT
from tests.processes import is_alive
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import dump_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, EXIT_REFUSED
from vcppo.common.files.json_lines import JsonLinesTail
from vcppo.common.process.living import living
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import Ledger

pytestmark = pytest.mark.timeout(240)

Start = Callable[..., subprocess.Popen[bytes]]


class Host:
    """A folder of runs, as one host sees it."""

    def __init__(self, folder: Path, **redis: Any) -> None:
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "config.json").write_text("{}")
        (folder / "model" / "model.safetensors").touch()
        config = config_of(folder / "runs", "r")
        text = dump_config(config.model_copy(update={"redis": config.redis.model_copy(update=redis)}))
        self.config, self.go = folder / "r.yaml", folder / "go"
        self.config.write_text(text.replace("path: model", f"path: {folder / 'model'}"))
        self.folder = RunFolder(folder / "runs" / "r")
        self.output = folder / "output"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> subprocess.Popen[bytes]:
        """The launcher with a real buffer (and Redis, unless there is one); its learner waits for `go`."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(RIG / "bare_launcher.py"), str(self.config), str(self.go)]
        with self.output.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, cwd=ROOT)
        self._started.append(process)
        return process

    def wait_for(self, event: str) -> None:
        tail = JsonLinesTail(self.output)
        eventually(lambda: any(record["event"] == event for record in tail.read()), 90)

    def wait_until_up(self) -> None:
        """The stub of a learner says so at once; it does not wait for the buffer."""
        for event in ("ready", "learner_ready"):
            self.wait_for(event)

    def pids(self) -> dict[str, int]:
        """name -> process id of what the launcher started last."""
        records = JsonLinesTail(self.folder.log_file("launcher")).read()
        return {each["process"]: each["pid"] for each in records if each["event"] == "process_started"}

    def end(self) -> None:
        for process in self._started:
            process.kill()
            process.wait(10)
        for pid in self.pids().values():
            for number in (signal.SIGCONT, signal.SIGKILL):
                if is_alive(pid):
                    os.kill(pid, number)


@pytest.fixture
def make_host(tmp_path: Path) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(name: str, **redis: Any) -> Host:
        made.append(Host(tmp_path / name, **redis))
        return made[-1]

    yield make
    for host in made:
        host.end()


def test_what_is_frozen_of_an_earlier_start_is_named_and_can_be_ended_as_it_says(
    make_host: Callable[..., Host],
) -> None:
    host = make_host("here")
    first = host.start()
    host.wait_until_up()
    frozen = {name: pid for name, pid in host.pids().items() if name in ("buffer", "redis")}
    assert {each.name: each.pid for each in living(host.folder.processes)} == frozen
    first.send_signal(signal.SIGSTOP)
    assert host.start().wait(60) == EXIT_FAILURE
    assert f"in use by another vcppo (pid {first.pid}): stop it first" in host.output.read_text()
    for pid in frozen.values():
        os.kill(pid, signal.SIGSTOP)
    first.kill()
    first.wait(10)
    assert host.start().wait(60) == EXIT_FAILURE
    said = host.output.read_text()
    for name, pid in frozen.items():
        assert f"{name} (pid {pid} on " in said
    (remedy,) = re.findall(r"kill -9 [0-9 ]+[0-9]", said)
    subprocess.run(shlex.split(remedy), check=True)
    third = host.start()
    host.wait_until_up()
    host.go.touch()
    assert third.wait(60) == EXIT_OK
    assert living(host.folder.processes) == []


def test_on_another_host_the_later_start_wins_and_the_earlier_one_ends_when_it_wakes_up(
    make_host: Callable[..., Host], redis_process: RedisServer
) -> None:
    """Two folders, one Redis: no lock is shared."""
    first, second = (make_host(name, url=redis_process.url) for name in ("one", "two"))
    old = first.start()
    first.wait_until_up()
    buffer = first.pids()["buffer"]
    for pid in (old.pid, buffer):
        os.kill(pid, signal.SIGSTOP)
    new = second.start()
    second.wait_until_up()
    for pid in (buffer, old.pid):
        os.kill(pid, signal.SIGCONT)
    assert old.wait(60) == EXIT_REFUSED
    assert "launcher number 1" in first.output.read_text()
    assert "was superseded by launcher number 2" in first.output.read_text()
    assert not is_alive(buffer)
    second.go.touch()
    assert new.wait(60) == EXIT_OK
    assert redis_process.store("r").ledger() == Ledger()

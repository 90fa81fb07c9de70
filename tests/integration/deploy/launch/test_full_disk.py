"""A run on a small disk of its own that fills up: launcher, Redis and buffer are real, the learner waits for a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.disks import small_disk
from tests.paths import RIG, ROOT
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import dump_config
from vcppo.deploy.chaos.shortages import FilledDisk, UsedInodes


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", inodes=1000) as folder:
        yield folder


class Run:
    """`bare_launcher.py` over a run folder on the small disk; its terminal is a file elsewhere."""

    def __init__(self, disk: Path, tmp_path: Path) -> None:
        self.folder, self.done, self.terminal = disk / "r", tmp_path / "done", tmp_path / "terminal.txt"
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").touch()
        text = dump_config(config_of(disk, "r")).replace("path: model", f"path: {model}")
        assert "stop_deadline_seconds: 30.0" in text
        text = text.replace("stop_deadline_seconds: 30.0", "stop_deadline_seconds: 4.0")
        (tmp_path / "r.yaml").write_text(text)
        command = [sys.executable, str(RIG / "bare_launcher.py"), str(tmp_path / "r.yaml"), str(self.done)]
        with self.terminal.open("wb") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)

    def records(self) -> list[dict[str, object]]:
        lines = self.terminal.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def events(self, event: str) -> list[dict[str, object]]:
        return [record for record in self.records() if record["event"] == event]

    def wait(self, condition: Callable[[], object], what: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < until, f"no {what}:\n{self.terminal.read_text()[-4000:]}"
            assert self.process.poll() is None, f"ended before {what}:\n{self.terminal.read_text()[-4000:]}"
            time.sleep(0.05)

    def wait_until_up(self) -> None:
        """The stub of a learner says so at once; it does not wait for the buffer."""
        for event, what in (("ready", "buffer"), ("learner_ready", "learner")):
            self.wait(partial(self.events, event), what)

    def pids(self, process: str | None = None) -> list[int]:
        started = self.events("process_started")
        return [int(str(each["pid"])) for each in started if process in (None, each["process"])]


@pytest.fixture
def run(disk: Path, tmp_path: Path) -> Iterator[Run]:
    each = Run(disk, tmp_path)
    yield each
    if each.process.poll() is None:
        each.process.terminate()
        each.process.wait(60)


def end_well(run: Run) -> str:
    """Let it come to its end; what its terminal shows."""
    run.done.touch()
    assert run.process.wait(60) == 0, run.terminal.read_text()[-4000:]
    text = run.terminal.read_text()
    assert "Traceback" not in text
    assert [pid for pid in run.pids() if Path(f"/proc/{pid}").exists()] == []
    return text


def test_a_full_disk_is_said_and_waited_for(run: Run, disk: Path) -> None:
    run.wait_until_up()
    full = FilledDisk(disk)
    full.strike()
    run.wait(lambda: run.events("process_waits_for_room"), "process that waits")
    run.wait(lambda: run.events("waiting_for_room"), "line of the launcher")
    waits = run.events("process_waits_for_room")[0]
    assert waits["process"] == "redis"
    assert (waits["resource"], waits["folder"]) == ("disk space", str(run.folder / "redis"))
    full.undo()
    run.wait(lambda: run.events("room_again"), "line that there is room")
    text = end_well(run)
    assert not run.events("process_restarting"), "the disk's doing was counted as a process' failure"
    assert "log_lines_lost" not in text
    kept = (run.folder / "logs" / "launcher.jsonl").read_text()
    assert "process_waits_for_room" in kept  # written when there was room


def test_it_stops_in_order_on_a_full_disk(run: Run, disk: Path) -> None:
    run.wait_until_up()
    FilledDisk(disk).strike()
    run.wait(lambda: run.events("process_waits_for_room"), "process that waits")
    run.process.terminate()
    assert run.process.wait(90) != 0
    text = run.terminal.read_text()
    assert "Exception ignored" not in text
    assert [pid for pid in run.pids() if Path(f"/proc/{pid}").exists()] == []


def test_a_process_comes_back_where_no_file_can_be_made(run: Run, disk: Path) -> None:
    run.wait_until_up()
    (run.folder / "logs" / "buffer.jsonl").unlink(missing_ok=True)
    used = UsedInodes(disk)
    used.strike()
    os.kill(run.pids("buffer")[-1], 9)
    run.wait(lambda: len(run.pids("buffer")) > 1, "new buffer")
    used.undo()
    end_well(run)

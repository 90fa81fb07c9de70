"""Child programs of `vcppo check` that die, hang or babble: a failed line each, and the checks after it still run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.processes import is_alive
from tests.unit.deploy.placement.test_place import config, gpus
from vcppo.common.check.check_lines import CheckLine
from vcppo.deploy.check.children import Began, Child, Children, Ended, Planned, child_programs
from vcppo.deploy.placement.place import place

PROGRAM = """
import json, os, signal, subprocess, sys, time
def say(**message): print(json.dumps(message), flush=True)
first = int(sys.argv[sys.argv.index("--first") + 1])
def hang():
    pid = subprocess.Popen(["sleep", "1000"]).pid
    open({pids!r}, "a").write(f"{{os.getpid()}} {{pid}} ")
    time.sleep(1000)
def die():
    sys.stderr.write("out of luck\\n"); sys.stderr.flush()
    os.kill(os.getpid(), signal.SIGKILL)
def leave(): sys.exit(7)
def babble(): print("no json"); print(json.dumps([1])); print(json.dumps({{"line": {{"status": "odd"}}}}))
def fine(): say(line={{"group": "g", "name": "fine", "status": "passed", "text": "fine"}})
checks = [{checks}]
if {silent}: time.sleep(1000)
say(plan=[["g", check.__name__] for check in checks])
for number, check in list(enumerate(checks))[first:]:
    say(begin=number, deadline={deadline})
    check()
    say(end=number)
"""


class Programs:
    def __init__(self, folder: Path) -> None:
        self.folder, self.pids = folder, folder / "pids"

    def child(self, checks: str, *, deadline: float = 60.0, start: float = 60.0, silent: bool = False) -> Child:
        path = self.folder / f"{abs(hash(checks))}.py"
        path.write_text(PROGRAM.format(checks=checks, pids=str(self.pids), silent=silent, deadline=deadline))
        return Child("c", [sys.executable, str(path)], "g", start_seconds=start)


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def run(*children: Child) -> tuple[list[CheckLine], list[object]]:
    with Children(children) as running:
        events = [event for event in running.events() if event is not None]
    return [event for event in events if isinstance(event, CheckLine)], events


def test_a_child_that_works(programs: Programs) -> None:
    lines, events = run(programs.child("fine, fine"))
    assert [line.status for line in lines] == ["passed", "passed"]
    assert events[0] == Planned("c", (("g", "fine"), ("g", "fine")))
    assert [type(event) for event in events[1:4]] == [Began, CheckLine, Ended]


def test_one_that_is_killed_goes_on_with_the_next_check(programs: Programs) -> None:
    lines, events = run(programs.child("fine, die, fine, leave, fine"))
    assert [(line.name, line.status) for line in lines] == [
        ("fine", "passed"), ("die", "failed"), ("fine", "passed"), ("leave", "failed"), ("fine", "passed"),
    ]  # fmt: skip
    assert "SIGKILL" in lines[1].text and "out of luck" in lines[1].details
    assert "exit code 7" in lines[3].text
    assert sum(isinstance(event, Ended) for event in events) == 5


def test_one_that_hangs_is_ended_with_all_it_started(programs: Programs) -> None:
    began = time.monotonic()
    lines, _ = run(programs.child("hang, fine", deadline=3.0), programs.child("fine"))
    assert sorted(line.status for line in lines) == ["failed", "passed", "passed"]
    assert "no answer in 3 s" in next(line.text for line in lines if line.status == "failed")
    assert time.monotonic() - began < 60
    assert not any(is_alive(int(pid)) for pid in programs.pids.read_text().split())


def test_one_that_never_says_what_it_runs(programs: Programs) -> None:
    lines, _ = run(programs.child("fine", silent=True, start=2.0))
    assert [(line.group, line.status) for line in lines] == [("g", "failed")]


def test_one_that_can_not_be_started(tmp_path: Path) -> None:
    lines, _ = run(Child("c", [sys.executable, str(tmp_path / "nothing.py")], "g"))
    assert [line.status for line in lines] == ["failed"]
    assert "nothing.py" in " ".join(lines[0].details)


def test_each_sees_the_gpus_that_the_run_gives_its_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both run at once, and vLLM takes most of what it sees."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    placement = place(config(2, 2, 2), gpus(6), [None])
    found = child_programs(tmp_path / "config.yaml", 0, placement)
    assert [child.environment["CUDA_VISIBLE_DEVICES"] for child in found] == ["0", "2,3"]
    for none in (None, place(config(), [], [None])):
        assert [child.environment for child in child_programs(tmp_path, 0, none)] == [{}, {}]
    says = "import os, sys; sys.stderr.write(os.environ['CUDA_VISIBLE_DEVICES']); sys.exit(1)"
    lines, _ = run(Child("c", [sys.executable, "-c", says], "g", found[1].environment))
    assert lines[0].details == ("2,3",)


def test_stray_output_is_passed_over(programs: Programs) -> None:
    lines, _ = run(programs.child("babble, fine"))
    assert [line.name for line in lines] == ["fine"]


def test_leaving_early_leaves_nobody_behind(programs: Programs) -> None:
    with Children([programs.child("hang")]) as running:
        for _ in running.events():
            if programs.pids.exists() and len(programs.pids.read_text().split()) == 2:
                break
    deadline = time.monotonic() + 20
    while any(is_alive(int(pid)) for pid in programs.pids.read_text().split()):
        assert time.monotonic() < deadline, "still there"
        os.sched_yield()

"""The kinds of faults one by one, without a run: each has its strike, proves its effect, and hurts nobody else."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from tests.processes import is_alive
from tests.unit.deploy.chaos.test_chaos import CONFIG, GOOD, failing
from vcppo.common.run_folder import RunFolder
from vcppo.common.store.ledger import DeadLetter
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic
from vcppo.deploy.chaos.evidence import checks
from vcppo.deploy.chaos.faults import processes
from vcppo.deploy.chaos.faults.hanging_task import HangingChain
from vcppo.deploy.chaos.faults.hostile_peer import FALSE_CALLS, false_messages
from vcppo.deploy.chaos.faults.resources import exhaust_files, first_free_number
from vcppo.deploy.chaos.faults.scene import is_gone
from vcppo.deploy.chaos.injector import strike_of
from vcppo.deploy.chaos.schedule import ALONE, Kind, schedule
from vcppo.deploy.chaos.watch import Watch


def test_there_are_enough_kinds_and_each_has_its_strike() -> None:
    assert len(Kind) >= 25
    assert all(callable(strike_of(kind)) for kind in Kind)
    assert len({strike_of(kind) for kind in ALONE}) == len(ALONE)


def test_some_kinds_never_overlap() -> None:
    faults = schedule(3)
    assert not any(fault.overlaps for _, fault in zip(range(2000), faults, strict=False) if fault.kind in ALONE)


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "import time\nwhile True: time.sleep(0.01)"])
    yield process
    process.kill()
    process.wait(10)


def test_the_freezer_stops_a_process_and_wakes_it(sleeper: subprocess.Popen[bytes]) -> None:
    helper = subprocess.Popen([sys.executable, "-I", "-S", processes.FREEZER, str(sleeper.pid), "0.6"])
    stat = Path(f"/proc/{sleeper.pid}/stat")
    deadline = time.monotonic() + 10
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline, "it never stood still"
        time.sleep(0.01)
    assert helper.wait(10) == 0
    assert stat.read_text().rpartition(")")[2].split()[0] != "T"


def test_a_freezer_that_is_told_to_end_wakes_its_process_first(sleeper: subprocess.Popen[bytes]) -> None:
    helper = subprocess.Popen([sys.executable, "-I", "-S", processes.FREEZER, str(sleeper.pid), "60"])
    stat = Path(f"/proc/{sleeper.pid}/stat")
    deadline = time.monotonic() + 10
    while stat.read_text().rpartition(")")[2].split()[0] != "T":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    helper.terminate()
    assert helper.wait(10) == 1
    assert stat.read_text().rpartition(")")[2].split()[0] != "T"


class TestHangingTask:
    def test_without_its_flag_it_is_the_task(self, tmp_path: Path) -> None:
        task, plain = (
            HangingChain(hang_flag=str(tmp_path / "hang"), num_operations=1),
            ChainArithmetic(num_operations=1),
        )
        (problem,) = task.problems("train", 0, 0, 1)
        assert [problem] == plain.problems("train", 0, 0, 1)
        assert task.verify(problem.answer, f"</think>{problem.answer['value']}", "stop").outcome == "correct"

    def test_with_it_one_verifier_hangs_with_a_child_that_hides(self, tmp_path: Path) -> None:
        flag = tmp_path / "hang"
        flag.write_text("hang")
        code = f"""
from vcppo.deploy.chaos.faults.hanging_task import HangingChain
HangingChain(hang_flag={str(flag)!r}).verify({{"value": "1"}}, "", "stop")"""
        process = subprocess.Popen([sys.executable, "-c", code])
        told, deadline = flag.with_suffix(".json"), time.monotonic() + 30
        try:
            while not told.exists():
                assert time.monotonic() < deadline and process.poll() is None
                time.sleep(0.02)
            said = json.loads(told.read_text())
            assert not flag.exists()
            assert said["verifier"] == process.pid and abs(time.time() - said["time"]) < 30
            grandchild = said["grandchild"]
            assert is_alive(grandchild) and os.getsid(grandchild) != os.getsid(0)
            os.kill(grandchild, 9)
        finally:
            process.kill()
            process.wait(10)


def test_a_zombie_counts_as_gone() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    deadline = time.monotonic() + 20
    while not is_gone(process.pid):  # not waited for yet
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.wait(10)
    assert is_gone(process.pid)
    assert not is_gone(os.getpid())


class TestHostilePeer:
    def test_each_message_has_an_id_by_which_it_is_refused(self) -> None:
        found = false_messages("chaos-1", Random(0))
        assert len(found) >= 100
        assert all(messages[-1][1].decode() == name for name, messages in found.items())
        assert any(len(messages) > 1 for messages in found.values())

    def test_it_calls_every_method_that_could_hurt(self) -> None:
        assert {"canary", "update_weights", "finish_weight_update", "dismiss", "pause"} <= {
            name for name, _ in FALSE_CALLS
        }


def letter(prompt_id: str, source: str = "", reason: str = "unusable trajectory") -> DeadLetter:
    return DeadLetter("2-0", 0.0, reason, f"{prompt_id}: checksum", source, 1, b"")


SPOILT = {"rl-00000003-1": "buffered"}


class TestEvidence:
    def failing(self, spoilt: dict[str, str], **change: Any) -> set[str]:
        found = checks(replace(GOOD, **change), CONFIG, spoilt)
        return {check.what.split(",")[0] for check in found if not check.passed}

    def test_a_spoilt_payload_is_one_dead_letter(self) -> None:
        ledger = replace(GOOD.ledger, rejected=2, expired=0)
        letters = [*GOOD.dead_letters, letter("rl-00000003-1")]
        assert self.failing(SPOILT, ledger=ledger, dead_letters=letters) == set()
        what = "each spoilt payload is one dead letter and is not trained"
        assert what in self.failing(SPOILT)
        twice = [*letters, letter("rl-00000003-1")]
        assert what in self.failing(SPOILT, ledger=replace(ledger, rejected=3), dead_letters=twice)
        assert what in self.failing({"rl-00000000-0": "buffered"})  # it was trained
        assert self.failing({"rl-00000000-0": "claimed"}) == set()  # before it was spoilt

    def test_nothing_else_may_be_rejected(self) -> None:
        letters = [*GOOD.dead_letters, letter("rl-00000003-1")]
        assert "dead letters explained" in failing(replace(GOOD, dead_letters=letters))

    def test_letters_of_hostile_peers_reject_no_prompt(self) -> None:
        letters = [*GOOD.dead_letters, letter("header", "chaos-3.0", "invalid trajectory")]
        assert failing(replace(GOOD, dead_letters=letters)) == set()
        more = replace(GOOD.ledger, rejected=2, expired=0)
        assert "dead letters explained" in failing(replace(GOOD, dead_letters=letters, ledger=more))


def test_the_watch_knows_verifiers_sieges_and_who_ended_by_itself(tmp_path: Path) -> None:
    watch = Watch(RunFolder(tmp_path))
    watch.see("generator-1", {"event": "verifier_killed", "time": "2026-01-02T03:04:05.678Z"})
    watch.see("chaos-1", {"event": "siege_over", "unanswered": 0})
    for code in (-9, 0, 1):
        watch.see("launcher", {"event": "process_ended", "process": "generator-0", "exit_code": code})
    assert (watch.num_verifier_ends("generator-1"), watch.num_verifier_ends("generator-0")) == (1, 0)
    assert watch.verifier_ends[0][0] == pytest.approx(1767323045.678)
    watch.see("generator-0", {"event": "environment_killed", "time": "2026-01-02T03:04:05.678Z"})
    assert watch.num_verifier_ends("generator-0") == 1
    assert watch.sieges["chaos-1"]["unanswered"] == 0
    assert (watch.own_ends("generator-0", 0), watch.own_ends("generator-0", 3)) == ([1], [])


def test_the_first_free_number_leaves_no_gap(sleeper: subprocess.Popen[bytes]) -> None:
    taken = {int(name) for name in os.listdir(f"/proc/{sleeper.pid}/fd")}
    number = first_free_number(sleeper.pid)
    assert number not in taken and set(range(number)) <= taken


OPENER = """
import sys
held = open("/dev/null")
print("open", flush=True)
for line in sys.stdin:
    try:
        if line.strip() == "close":
            held.close()
        else:
            open("/dev/null").close()
        print("done", flush=True)
    except OSError as error:
        print(error.errno, flush=True)
"""


def test_a_file_that_was_open_at_the_strike_leaves_no_number_free() -> None:
    """It was closed at once, and the process could open one file after the other for ever."""
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", OPENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None

    def says(line: str) -> str:
        process.stdin.write(line + "\n")
        process.stdin.flush()
        return process.stdout.readline().strip()

    assert process.stdout.readline().strip() == "open"
    watch = SimpleNamespace(num_shortages=0)
    child = SimpleNamespace(spec=SimpleNamespace(name="learner"))
    scene: Any = SimpleNamespace(
        up=lambda role: [child], pids=lambda child: [process.pid], watch=watch, lowered=[], limit=60.0
    )
    blow = exhaust_files(scene, SimpleNamespace())  # type: ignore[arg-type]
    assert blow is not None
    assert says("close") == "done"
    assert says("try") == "done"  # with the number that was just given back
    assert not blow.over()
    assert says("try") == str(errno.EMFILE)
    watch.num_shortages = 1
    assert blow.over()
    blow.undo()
    watch.num_shortages = 0
    assert not blow.achieved()  # and lowers nothing any more
    assert says("try") == "done"
    process.stdin.close()
    assert process.wait(10) == 0

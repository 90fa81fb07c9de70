"""The supervisor when something has run out: it waits, says so in one line, and goes on by itself."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.processes import is_alive
from vcppo.common.errors import EXIT_EXHAUSTED, ResourceExhausted
from vcppo.deploy.chaos.shortages import LoweredLimit
from vcppo.deploy.logs.log_lines import LogSink, Record
from vcppo.deploy.processes import supervisor as supervisor_module
from vcppo.deploy.processes.process_spec import ProcessFailed, ProcessSpec
from vcppo.deploy.processes.restarts import MAX_ROOM_SECONDS, RoomPause, resource_lacked
from vcppo.deploy.processes.spawn import spawn
from vcppo.deploy.processes.supervisor import Supervisor

READY = 'print(\'{"event": "ready"}\', flush=True);'


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    sink = LogSink(tmp_path / "logs", "test")
    with Supervisor(sink, stop_deadline_seconds=5, start_deadline_seconds=20, backoff_seconds=0.02) as each:
        yield each
    sink.close()


def program(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@contextmanager
def no_more_files(but: int = 0) -> Iterator[None]:
    """Only so many more files can be opened."""
    # The limit is on a file's number, and numbers have gaps: counted from the highest, enough are free below it.
    highest = max(map(int, os.listdir("/proc/self/fd")))
    limit = LoweredLimit(os.getpid(), resource.RLIMIT_NOFILE, highest + 1 + but)
    held: list[int] = []
    limit.strike()
    try:
        with contextlib.suppress(OSError):  # what is free below the limit
            while True:
                held.append(os.dup(2))
        for _ in range(but):
            os.close(held.pop())
        yield
    finally:
        limit.undo()
        for each in held:
            os.close(each)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE])
def test_a_start_that_fails_for_want_of_something_is_tried_again(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    tries: list[int] = []

    def failing(spec: ProcessSpec, null: int) -> object:
        tries.append(1)
        if len(tries) < 3:
            raise OSError(number, os.strerror(number))
        return spawn(spec, null)

    monkeypatch.setattr(supervisor_module, "spawn", failing)
    with capture_logs() as lines:
        child = supervisor.start(ProcessSpec("a", program(READY)))
        supervisor.wait_exit("a")
    assert len(tries) == 3
    assert child.restarts.total == 0
    waits = [line for line in lines if line["event"] == "process_waits_for_room"]
    assert [line["process"] for line in waits] == ["a", "a"]
    assert all(line["resource"] and line["reason"] for line in waits)


def test_a_start_that_fails_for_another_reason_is_an_error(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(spec: ProcessSpec, null: int) -> object:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(supervisor_module, "spawn", failing)
    with pytest.raises(OSError, match="no"):
        supervisor.start(ProcessSpec("a", program(READY)))


def _starts_without_room() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    before = open_files()
    for spare in range(6):  # two pipes for its output, and one of subprocess' own
        with no_more_files(but=spare), pytest.raises(OSError, match="Too many open files"):
            spawn(ProcessSpec("a", program("")), null)
        assert open_files() == before
    os.close(null)


def test_a_start_that_fails_leaves_no_files_open() -> None:
    """In a process of its own: a thread that an earlier test left here may open a file at any moment."""
    child = multiprocessing.get_context("spawn").Process(target=_starts_without_room)
    child.start()
    child.join(120)
    assert child.exitcode == 0


def test_orphans_are_ended_without_a_file_to_spare(supervisor: Supervisor, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        f"import os, signal, time\nif os.fork() == 0:\n  os.setsid()\n"
        f"  open({str(note)!r}, 'w').write(str(os.getpid()))\n  signal.pause()\n"
        f"while not os.path.exists({str(note)!r}): time.sleep(0.01)\n{READY}\nsignal.pause()"
    )
    child = supervisor.start(ProcessSpec("a", program(code)))
    supervisor.wait_ready(["a"])
    grandchild = int(note.read_text())
    child.stopping = True  # its end is ours
    with no_more_files():
        os.kill(child.pid, signal.SIGKILL)
        supervisor.wait(lambda: child.exit_code is not None)
        supervisor.stop([["a"]])
    assert not is_alive(grandchild)


def test_no_files_at_its_own_start_are_said(tmp_path: Path) -> None:
    supervisor = Supervisor(LogSink(tmp_path, "r"), stop_deadline_seconds=1)
    with no_more_files(), pytest.raises(ResourceExhausted, match="open files"):
        supervisor.__enter__()


def ending(flag: Path, times: int, how: str) -> list[str]:
    """Ends so many times in this way, then runs to its end."""
    return program(
        f"import os, sys\nf = {str(flag)!r}\nn = os.path.getsize(f) if os.path.exists(f) else 0\n"
        f"if n < {times}:\n  open(f, 'a').write('x')\n  {how}\n{READY}"
    )


@pytest.mark.parametrize(
    "how",
    [
        f"sys.exit({EXIT_EXHAUSTED})",
        "print('OSError: [Errno 28] No space left on device', file=sys.stderr); sys.exit(1)",
        "print('Short write while writing to the AOF file: (nwritten=1, expected=2)', flush=True); sys.exit(1)",
        """print('{"event": "fatal", "error": "x", "resource": "memory"}', flush=True); sys.exit(1)""",
    ],
)
def test_an_end_for_want_of_a_resource_counts_for_nothing(supervisor: Supervisor, tmp_path: Path, how: str) -> None:
    spec = ProcessSpec("a", ending(tmp_path / "n", 3, how), max_restarts=0)  # no restart is allowed
    child = supervisor.start(spec)
    supervisor.wait_exit("a")
    assert child.restarts.total == 0
    assert child.waits.tries == 3


def test_a_process_that_ends_beside_one_that_waits_is_not_counted_either(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    """A learner gives up on a Redis whose disk is full: that is the disk's doing."""
    beside = ending(tmp_path / "n", 2, "sys.exit(1)")
    redis = supervisor.start(ProcessSpec("redis", ending(tmp_path / "m", 2, f"sys.exit({EXIT_EXHAUSTED})")))
    supervisor.wait(lambda: redis.waits.tries > 0)
    child = supervisor.start(ProcessSpec("learner", beside, max_restarts=0))
    supervisor.wait_exit("learner")
    assert child.restarts.total == 0


def test_two_that_only_wait_beside_each_other_do_not_go_on_for_ever(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.restart_window_seconds = 0.05
    stay = f"{READY}\nimport signal\nsignal.pause()"
    redis = supervisor.start(
        ProcessSpec("redis", program(f"import os,sys\nf={str(tmp_path / 'm')!r}\nif not os.path.exists(f):\n"
                                     f"  open(f,'w').close(); sys.exit({EXIT_EXHAUSTED})\n{stay}"))
    )  # fmt: skip
    supervisor.wait_ready(["redis"])
    supervisor.start(ProcessSpec("learner", program("import time; time.sleep(0.3); raise SystemExit(1)")))
    with pytest.raises(ProcessFailed, match="learner"):
        supervisor.wait_exit("learner")
    assert redis.waits.tries == 0


def test_config_errors_are_final_whatever_is_full(supervisor: Supervisor) -> None:
    supervisor.start(ProcessSpec("a", program("print('No space left on device', flush=True); raise SystemExit(2)")))
    with pytest.raises(ProcessFailed):
        supervisor.wait_exit("a")


def test_pauses_grow_to_a_bound() -> None:
    pause = RoomPause()
    delays = [pause.again("memory", 1.0, is_own=True) for _ in range(40)]
    assert delays[:4] == [1, 2, 4, 8]
    assert delays[-1] == MAX_ROOM_SECONDS
    pause.over()
    assert (pause.again("memory", 1.0, is_own=True), pause.tries) == (1.0, 1)


def test_what_a_process_lacked() -> None:
    assert resource_lacked(1, "", ["all is well", "Killed"]) is None
    assert resource_lacked(1, "inodes", []) == "inodes"
    assert resource_lacked(EXIT_EXHAUSTED, "", []) == "a resource"
    assert resource_lacked(1, "", ["x", "[Errno 24] Too many open files"]) == "open files"


class TestSink:
    """Its own disk, and its terminal."""

    def test_lines_are_shown_and_kept_while_the_disk_is_full(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from tests.unit.common.files.test_kept_lines import SmallDisk
        from vcppo.common.files import json_lines

        monkeypatch.setattr(json_lines, "FileIO", SmallDisk)
        shown: list[Record] = []
        SmallDisk.room = 0
        sink = LogSink(tmp_path / "logs", "r", lambda _, record: shown.append(record))
        for number in range(3):
            sink.line("a", f"line {number}")
            sink.line("b", f"line {number}")
        assert sink.waits
        SmallDisk.room = 1 << 20
        sink.flush()
        assert not sink.waits
        sink.close()
        events = [record["event"] for record in shown]
        assert events.count("waiting_for_room") == events.count("room_again") == 1
        texts = {name: (tmp_path / "logs" / f"{name}.jsonl").read_text() for name in ("a", "b", "launcher")}
        kept = [json.loads(line)["event"] for line in texts["a"].splitlines()]
        assert kept == ["line 0", "line 1", "line 2"]
        assert texts["launcher"].count("waiting_for_room") == 1

    def test_a_terminal_that_is_gone_ends_nothing(self, tmp_path: Path) -> None:
        def gone(process: str, record: Record) -> None:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

        sink = LogSink(tmp_path, "r", gone)
        sink.line("a", "one")
        sink.line("a", "two")
        sink.close()
        assert (tmp_path / "a.jsonl").read_text().count("\n") == 2
        assert "terminal_gone" in (tmp_path / "launcher.jsonl").read_text()

    def test_a_terminal_that_is_a_file_on_a_full_disk_is_tried_again(self, tmp_path: Path) -> None:
        shown: list[str] = []

        def show(process: str, record: Record) -> None:
            if len(shown) == 0 and record["event"] == "one":
                raise OSError(errno.ENOSPC, "No space left on device")
            shown.append(record["event"])

        sink = LogSink(tmp_path, "r", show)
        sink.line("a", "one")
        sink.line("a", "two")
        assert shown == ["two"]


def test_the_loop_does_not_spin_while_a_process_waits(supervisor: Supervisor, tmp_path: Path) -> None:
    supervisor.backoff_seconds = 0.3
    turns = 0
    original = supervisor._turn

    def counted(deadline: float) -> None:
        nonlocal turns
        turns += 1
        original(deadline)

    supervisor._turn = counted  # type: ignore[method-assign]
    began = time.monotonic()
    supervisor.start(ProcessSpec("a", ending(tmp_path / "n", 1, f"sys.exit({EXIT_EXHAUSTED})")))
    supervisor.wait_exit("a")
    assert time.monotonic() - began >= 0.3
    assert turns < 20

"""Flame graphs of all processes of the run on this machine, by py-spy: an SVG each.

py-spy looks into a process from outside. It takes the kernel's leave to trace: root, CAP_SYS_PTRACE, or a machine where
a user may trace all of its processes.
"""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import structlog

from vcppo.common.files.whole_file import move
from vcppo.common.process.living import living
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

_LONGEST_SECONDS = 600  # of a step; also how long one outlives a learner that was killed
_START_SECONDS, _WRITE_SECONDS = 10.0, 60.0
_STARTED = b"Sampling process"
# With --subprocesses it says the last of a process that is there and that it may not look at.
_REFUSED = ("permission denied", "operation not permitted", "no python processes found")
_NO_PYTHON = {"redis"}


@dataclass
class _Spy:
    """One py-spy at work."""

    name: str
    target: Path
    partial: Path
    process: subprocess.Popen[bytes]
    said: IO[bytes]

    def text(self) -> bytes:
        """All it has said so far."""
        self.said.seek(0)
        return self.said.read()


@contextmanager
def flame_graphs(folder: Path, step: int, notes: Path) -> Iterator[None]:
    """Samples every process noted in `notes`, and their children, while the block runs.

    Writes ``step_<N>.<process>.svg`` into `folder`. Where py-spy is missing or refused one log line says so.
    """
    program = _py_spy()
    if program is None:
        log.info("flame_graphs_left_out", reason="py-spy is not installed", remedy="pip install vcppo[profile]")
        yield
        return
    spies = _started(program, folder, step, notes)
    try:
        yield
    finally:
        _collect(spies)


def _py_spy() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")


def _started(program: str, folder: Path, step: int, notes: Path) -> list[_Spy]:
    """They sample when this returns, unless that takes too long."""
    here = socket.gethostname()
    spies: list[_Spy] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [each for each in living(notes) if each.host == here and each.name not in _NO_PYTHON]
        for each in wanted:  # one by one: those that were started are collected in any case
            spies += [_spy(program, folder / f"step_{step}.{each.name}.svg", each.name, each.pid)]
    except OSError as error:
        log.warning("flame_graphs_left_out", reason=one_line(error), remedy="see the reason: the step goes on")
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and any(_is_starting(spy) for spy in spies):
        time.sleep(0.05)
    return spies


def _spy(program: str, target: Path, name: str, pid: int) -> _Spy:
    partial, said = target.with_name(f".partial-{target.name}"), tempfile.TemporaryFile()  # noqa: SIM115
    command = [
        program, "record", "--pid", str(pid), "--output", str(partial), "--format", "flamegraph",
        "--subprocesses", "--threads", "--duration", str(_LONGEST_SECONDS),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True)
    return _Spy(name, target, partial, process, said)


def _is_starting(spy: _Spy) -> bool:
    return spy.process.poll() is None and _STARTED not in spy.text()


def _collect(spies: list[_Spy]) -> None:
    """Ask all to write, then wait for each; those that were refused share one log line."""
    for spy in spies:
        if spy.process.poll() is None:
            spy.process.send_signal(signal.SIGINT)
    deadline = time.monotonic() + _WRITE_SECONDS
    problems = {spy.name: text for spy in spies if (text := _problem_of(spy, deadline)) is not None}
    refused = [name for name, text in problems.items() if any(sign in text.lower() for sign in _REFUSED)]
    if refused:
        log.warning("flame_graphs_refused", processes=refused, reason="py-spy may not trace them", remedy=_REMEDY)
    for name in problems.keys() - refused:
        log.warning("flame_graph_not_written", process=name, error=one_line(problems[name])[:300])


def _problem_of(spy: _Spy, deadline: float) -> str | None:
    """What kept it from writing, in its own words; None: the file is there."""
    try:
        spy.process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        spy.process.kill()
        spy.process.wait()
    with spy.said:
        text = spy.text().decode(errors="replace")
    try:
        if spy.process.returncode == 0:
            move(spy.partial, spy.target)
            return None
        spy.partial.unlink(missing_ok=True)
    except OSError as error:
        return f"{text}: {error}"
    return text


_REMEDY = (
    "run as root or with CAP_SYS_PTRACE (docker compose: cap_add: [SYS_PTRACE]), or let users trace their own"
    " processes: sysctl kernel.yama.ptrace_scope=0"
)

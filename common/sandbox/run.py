"""Run one job and wait for it: pipes, deadline, sizes. What it runs behind is in keeper.py."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import tempfile
import time
from typing import IO, Any

from vcppo.common.files.json_file import parse_json
from vcppo.common.sandbox.job import Ending, Job, Layers, Limits, Result, SandboxError
from vcppo.common.sandbox.keeper import keep

_KILL_SECONDS = 10.0  # for the keeper to kill what is left and say so


def run_program(job: Job, layers: Layers) -> Result:
    """Run `job` and see to it that nothing of it is left. Returns soon after ``limits.wall_seconds`` at the latest.

    It forks: call it from a process that has one thread, as verifier children have.

    Args:
        layers: from `probe`. One that this machine refuses is an error, never left out.

    Raises:
        SandboxError: it could not be set up, or its keeper died; says nothing about the program.
    """
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(_sealed(job.stdin))
        reports, reports_in = _pipe(stack)
        stdout, stdout_in = _pipe(stack)
        stderr, stderr_in = _pipe(stack)
        life_line_out, life_line = _pipe(stack)
        theirs = [stdin, stdout_in, stderr_in, reports_in, life_line_out]
        box = tempfile.mkdtemp(prefix="vcppo-program-")  # the keeper removes it
        keeper = os.fork()
        if keeper == 0:
            keep(job, layers, box, [file.fileno() for file in theirs])
        try:
            for file in theirs:
                file.close()
            stopped, kept = _watch(job.limits, {"reports": reports, "stdout": stdout, "stderr": stderr}, life_line)
        except SandboxError:
            os.kill(keeper, signal.SIGKILL)  # its program dies with it
            raise
        finally:
            life_line.close()
            os.waitpid(keeper, 0)
    return _result(job, stopped, kept)


def _watch(limits: Limits, files: dict[str, IO[bytes]], life_line: IO[bytes]) -> tuple[Ending | None, dict[str, bytes]]:
    """Read all `files` to their ends, which come when no process is left; cut the life line at a limit.

    Returns:
        the limit, and what was read.
    """
    read = {name: bytearray() for name in files}
    stopped: Ending | None = None
    deadline = time.monotonic() + limits.wall_seconds
    with selectors.DefaultSelector() as selector:
        for name, file in files.items():
            selector.register(file, selectors.EVENT_READ, name)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif len(read[key.data]) <= limits.output_bytes:
                    read[key.data] += chunk
            is_late = time.monotonic() >= deadline
            if is_late and stopped:
                raise SandboxError(f"the sandbox did not end its program in {_KILL_SECONDS:g} s")
            is_flood = max(len(read["stdout"]), len(read["stderr"])) > limits.output_bytes
            if (is_late or is_flood) and not stopped:
                stopped = "timeout" if is_late else "flood"
                life_line.close()
                deadline = time.monotonic() + _KILL_SECONDS
    return stopped, {name: bytes(content) for name, content in read.items()}


def _result(job: Job, stopped: Ending | None, read: dict[str, bytes]) -> Result:
    report: dict[str, Any] = {}
    for line in read["reports"].splitlines():
        try:
            report.update(parse_json(line))
        except (ValueError, TypeError) as error:
            raise SandboxError(f"the sandbox could not run {job.argv[0]}: its keeper said {line[:80]!r}") from error
    if "error" in report or "status" not in report:
        raise SandboxError(f"the sandbox could not run {job.argv[0]}: {report.get('error', 'its keeper died')}")
    exit_code, cpu = os.waitstatus_to_exitcode(report["status"]), float(report["cpu"])
    ending: Ending = "exited" if exit_code >= 0 else "signalled"
    if stopped:
        ending = stopped
    elif cpu > job.limits.cpu_seconds:
        ending = "timeout"
    size = job.limits.output_bytes
    return Result(ending, exit_code, read["stdout"][:size], read["stderr"][:size], cpu)


def _pipe(stack: contextlib.ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    """Read end and write end, closed with the stack at the latest."""
    read, write = os.pipe()
    return stack.enter_context(open(read, "rb", buffering=0)), stack.enter_context(open(write, "wb", buffering=0))


def _sealed(content: bytes) -> IO[bytes]:
    """`content` in a file without a name that nobody can change or make larger."""
    file = open(os.memfd_create("stdin", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", buffering=0)  # noqa: SIM115
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
    file.seek(0)
    fcntl.fcntl(file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
    return file

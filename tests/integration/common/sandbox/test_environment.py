"""What a program is given (nothing of ours), and that ordinary ones run."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
import tempfile
import textwrap
from pathlib import Path

import pytest

from vcppo.common.sandbox import Isolation, Job, Layers, kernel, run_program

from .rig import LIMITS, NOTHING, PEEK, PYTHON, python

ORDINARY = {
    "threads": "import threading\nfor i in range(4): threading.Thread(target=print, args=('ok',)).start()",
    "deep_recursion": "import sys, threading\nsys.setrecursionlimit(10**6); threading.stack_size(2**26)\n"
    "def depth(n): return n and 1 + depth(n - 1)\n"
    "t = threading.Thread(target=lambda: print('ok', depth(50_000))); t.start(); t.join()",
    "asyncio": "import asyncio\nasync def main(): await asyncio.sleep(0.01); print('ok')\nasyncio.run(main())",
    "alarm": "import signal\nsignal.signal(signal.SIGALRM, lambda *_: print('ok')); signal.alarm(1); signal.pause()",
    "itself": "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *_: print('ok')); os.kill(os.getpid(), 10)",
    "random": "import os, random, uuid; print('ok', random.random(), os.urandom(4), uuid.uuid4())",
    "terminal": "import os, sys; print('ok', sys.stdout.isatty(), os.cpu_count(), os.getcwd(), os.listdir())",
    "time": "import datetime, time; print('ok', datetime.datetime.now(), time.localtime(), time.process_time())",
    "pool": "from concurrent.futures import ThreadPoolExecutor\nprint('ok', *ThreadPoolExecutor(4).map(abs, range(9)))",
    "big_numbers": "import decimal, fractions, math; print('ok', math.factorial(999), decimal.Decimal(2).sqrt())",
    "limits": "import resource; print('ok', resource.setrlimit(3, resource.getrlimit(3)))",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_programs_run(name: str, layers: Layers) -> None:
    result = run_program(python(ORDINARY[name]), layers)
    assert result.ending == "exited" and result.exit_code == 0 and b"ok" in result.stdout, result


def test_files_in_the_working_folder(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    source = """
        import os, pathlib, tempfile
        with tempfile.NamedTemporaryFile("w", dir=".") as file:
            file.write("ok")
            file.flush()
            os.rename(file.name, "renamed")
            print(open("renamed").read(), os.listdir())
            os.rename("renamed", file.name)
    """
    result = run_program(python(source), layers)
    assert result.exit_code == 0 and result.stdout.startswith(b"ok"), result


def test_processes_where_they_are_allowed(layers: Layers) -> None:
    source = "import subprocess; print(subprocess.check_output(['/bin/sh', '-c', 'echo ok; cat /dev/null']))"
    assert run_program(python(source, LIMITS._replace(may_fork=True)), layers).stdout == b"b'ok\\n'\n"
    assert b"PermissionError" in run_program(python(source), layers).stderr


def test_no_descriptor_leaks(layers: Layers, tmp_path: Path) -> None:
    (tmp_path / "open").write_text("swordfish")
    with (tmp_path / "open").open() as file:
        os.set_inheritable(file.fileno(), True)
        source = """
            import os
            for descriptor in range(3, 60):
                try:
                    os.fstat(descriptor)
                except OSError:
                    continue
                print(descriptor)
        """
        control = subprocess.run(
            [PYTHON, "-S", "-c", textwrap.dedent(source)], close_fds=False, capture_output=True, check=True
        )
        assert str(file.fileno()).encode() in control.stdout.split()
        for which in (NOTHING, layers):
            result = run_program(python(source), which)
            assert (result.exit_code, result.stdout) == (0, b"")


def test_stdin_can_be_read_and_not_changed(layers: Layers) -> None:
    data = secrets.token_bytes(3 * 2**20)
    source = """
        import hashlib, os, sys
        print(hashlib.md5(sys.stdin.buffer.read()).hexdigest(), sys.stdin.buffer.read())
        os.write(0, b"x")
    """
    result = run_program(python(source, stdin=data), layers)
    assert result.stdout.split()[0].decode() == hashlib.md5(data).hexdigest()  # noqa: S324  (a sum)
    assert result.exit_code == 1 and b"not permitted" in result.stderr


def test_environment_is_empty(layers: Layers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PASSWORD", "swordfish")
    result = run_program(python("import os; print([name for name in os.environ if name != 'LC_CTYPE'])"), layers)
    assert result.stdout == b"[]\n"  # LC_CTYPE is Python's own doing


def test_no_capability(layers: Layers) -> None:
    for which in (layers, layers - {"seccomp", "user"}, NOTHING):
        result = run_program(python("import os; os.chroot('.')"), which)
        assert result.exit_code == 1 and b"PermissionError" in result.stderr, (which, result)


def test_no_terminal_and_no_groups(layers: Layers) -> None:
    """A session of its own has no terminal to type into; the caller's groups would open the caller's files."""
    source = "import os; print(os.getsid(0), os.getgroups())"
    session, _ = run_program(python(source), NOTHING).stdout.split(maxsplit=1)
    assert int(session) != os.getsid(0)
    if "user" in layers:
        assert run_program(python(source), layers).stdout.endswith(b" []\n")


def test_no_look_into_the_keeper() -> None:
    """Its memory is a copy of the caller's, with the run's secrets."""
    assert b"PermissionError" in run_program(python(PEEK), NOTHING).stderr


def test_only_the_working_folder_can_be_written(isolation: Isolation) -> None:
    """Also by the user who owns everything else."""
    if "namespaces" in isolation.refused:
        pytest.skip(f"not here: {isolation.refused['namespaces']}")
    source = """
        import os
        for folder in ("/", "/usr", "/usr/lib", "/dev", "/etc", "."):
            try:
                os.mkdir(f"{folder}/vcppo-planted")
            except OSError:
                continue
            os.rmdir(f"{folder}/vcppo-planted")
            print(folder)
    """
    assert run_program(python(source), frozenset({"namespaces"})).stdout == b".\n"


def test_no_better_priority(layers: Layers) -> None:
    for which in (NOTHING, layers):
        assert b"PermissionError" in run_program(python("import os; os.nice(-1)"), which).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a program that changes its user")
def test_set_user_id_programs_have_no_effect(layers: Layers) -> None:
    """A copy of `id` that runs as user 1."""
    folder = Path(tempfile.mkdtemp(prefix="vcppo-test-public-"))
    try:
        folder.chmod(0o755)
        program = shutil.copy(str(shutil.which("id")), folder)
        os.chown(program, 1, 1)
        os.chmod(program, 0o4755)  # noqa: S103  (what must not help)
        job = Job((str(program), "-u"), (str(folder),), limits=LIMITS)
        assert subprocess.check_output(job.argv, preexec_fn=kernel.no_capabilities) == b"1\n"
        assert run_program(job, NOTHING).stdout == b"0\n"
        assert run_program(job, layers).stdout != b"1\n"
    finally:
        shutil.rmtree(folder)

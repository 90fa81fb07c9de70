"""Each limit flips the outcome."""

from __future__ import annotations

import os
import resource
import time

import pytest

from vcppo.common.sandbox import Isolation, Layers, Result, run_program

from .rig import FORKING, LIMITS, SLEEP, marker, processes, python


def test_right_output_and_exit_codes(layers: Layers) -> None:
    result = run_program(python("print(int(input()) + 1)", stdin=b"41\n"), layers)
    assert result[:4] == ("exited", 0, b"42\n", b"")
    assert run_program(python("import sys; sys.exit(3)"), layers)[:2] == ("exited", 3)
    assert run_program(python("import os; os.abort()"), layers).ending == "signalled"


def test_memory(layers: Layers) -> None:
    source = "block = bytearray(150 * 2**20); print(len(block))"
    assert run_program(python(source), layers).exit_code == 0
    little = run_program(python(source, LIMITS._replace(memory_bytes=100 * 2**20)), layers)
    assert little.exit_code == 1 and b"MemoryError" in little.stderr


def test_memory_is_not_the_caller_s(layers: Layers) -> None:
    """A verifier child has a limit on its own data."""
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**20, hard))
    try:
        result = run_program(python("block = bytearray(150 * 2**20)"), layers)
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
    assert result.exit_code == 0, result


def test_processor_time(layers: Layers) -> None:
    began = time.monotonic()
    busy = python("while True: pass", LIMITS._replace(cpu_seconds=0.2, wall_seconds=30))
    result = run_program(busy, layers)
    assert result.ending == "timeout" and 0.2 < result.cpu_seconds < 3 and time.monotonic() - began < 20


def test_time_by_the_clock(layers: Layers) -> None:
    began = time.monotonic()
    result = run_program(python("import time; time.sleep(60)", LIMITS._replace(wall_seconds=1)), layers)
    assert result.ending == "timeout" and result.cpu_seconds < 1 and time.monotonic() - began < 10


def test_a_time_limit_of_nothing(layers: Layers) -> None:
    assert run_program(python("print(1)", LIMITS._replace(wall_seconds=0)), layers).ending == "timeout"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output(stream: str, layers: Layers) -> None:
    result = run_program(python(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)"), layers)
    assert result.ending == "flood" and len(getattr(result, stream)) == LIMITS.output_bytes


def count_of(result: Result) -> int:
    """How often it printed a line before it failed."""
    assert result.ending == "exited" and result.exit_code == 1, result
    return result.stdout.count(b"\n")


def test_one_file(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    source = "open('large', 'wb').write(bytes(2 * 2**20)); print('done')"
    assert run_program(python(source), layers).stdout == b"done\n"
    result = run_program(python(source, LIMITS._replace(file_bytes=2**20)), layers)
    assert result.exit_code == 1 and b"File too large" in result.stderr


def test_all_files_together(layers: Layers) -> None:
    if "namespaces" not in layers:
        pytest.skip("no folder to write to")
    limits = LIMITS._replace(disk_bytes=4 * 2**20)
    source = (
        "for i in range(100):\n  for size in (2**20, 1): open(f'{i}-{size}', 'wb', 0).write(bytes(size))\n  print()"
    )
    assert count_of(run_program(python(source, limits), layers)) < 4
    assert 100 < count_of(run_program(python("for i in range(9999): open(str(i), 'w'); print()"), layers)) < 1024


def test_nothing_can_be_written_without_a_folder_of_its_own(isolation: Isolation) -> None:
    which = isolation.layers & {"landlock", "seccomp"}
    if "landlock" not in which:
        pytest.skip("no Landlock here")
    result = run_program(python("open('file', 'w')"), which)
    assert b"PermissionError" in result.stderr


def test_open_files(layers: Layers) -> None:
    source = "files = []\nfor i in range(200): files.append(open('/dev/null')); print()"
    assert 40 < count_of(run_program(python(source), layers)) < 64


def test_threads(layers: Layers) -> None:
    if os.geteuid() == 0 and "user" not in layers:
        pytest.skip("the kernel does not count root's")
    source = """
        import threading, time
        for i in range({}):
            threading.Thread(target=time.sleep, args=(0.2,)).start()
            print(flush=True)
    """
    few = LIMITS._replace(num_tasks=8)
    assert run_program(python(source.format(5), few), layers).exit_code == 0
    assert count_of(run_program(python(source.format(50), few), layers)) < 8


def test_fork_bomb(layers: Layers) -> None:
    """Bounded while it runs, gone afterwards; without the limit a bounded one has its way."""
    if os.geteuid() == 0 and "user" not in layers:
        pytest.skip("the kernel does not count root's")
    mark = marker()
    source = f"""
        import os, time
        for i in range(20):
            if os.fork() == 0:
                os.execv({SLEEP!r}, ["sleep", {mark!r}])
            print(flush=True)
    """
    limits = FORKING._replace(num_tasks=8)
    assert run_program(python(source, FORKING._replace(num_tasks=100)), layers).exit_code == 0
    assert count_of(run_program(python(source, limits), layers)) < 8
    bomb = f"""
        import os
        while True:
            try:
                os.fork()
            except OSError:
                pass
        {mark}
    """
    result = run_program(python(bomb, limits), layers)
    assert result.ending == "timeout", result
    assert processes(mark) == []

"""A family of processes ends as a whole, whatever its members do to be left alone."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest

from tests.processes import is_alive
from vcppo.common.process.family import END_SECONDS, GUARDIAN, Family

# Each says the pids of processes that try to be left alone, one a line.
HIDERS = {
    "a child that holds the pipe": """
pid = os.fork()
if pid == 0: time.sleep(600)
say(pid)
""",
    "a double fork with closed pipes in a new session": """
read, write = os.pipe()
if os.fork() == 0:
    os.setsid()
    pid = os.fork()
    if pid == 0:
        os.close(0); os.close(1); os.close(2); os.close(write); time.sleep(600)
    os.write(write, str(pid).encode()); os._exit(0)
say(int(os.read(read, 20)))
""",
    "a group of its own that ignores every signal": """
pid = os.fork()
if pid == 0:
    os.setpgid(0, 0)
    for number in range(1, 65):
        try: signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError): pass
    while True: time.sleep(600)
say(pid)
""",
    "many that go on forking": """
def fork_on(depth):
    while True:
        if depth and os.fork() == 0: fork_on(depth - 1)
        time.sleep(0.05)
for _ in range(5):
    pid = os.fork()
    if pid == 0: fork_on(2)
    say(pid)
""",
    "multiprocessing": """
import multiprocessing
multiprocessing.set_start_method("fork")
pool = multiprocessing.Pool(2)
for worker in pool._pool: say(worker.pid)
""",
    "a stopped child": """
pid = os.fork()
if pid == 0: time.sleep(600)
os.kill(pid, signal.SIGSTOP)
say(pid)
""",
    "no environment": """
pid = os.fork()
if pid == 0: os.execve(sys.executable, [sys.executable, "-c", "import time; time.sleep(600)"], {})
say(pid)
""",
}
HEAD = "import os, signal, sys, time\ndef say(what): os.write(1, f'{what}\\n'.encode())\n"
TAIL = "say('ready')\nwhile True: time.sleep(600)\n"


def run(body: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(body())  # type: ignore[arg-type]


async def started(script: str) -> tuple[Family, list[int]]:
    family = await Family.start([sys.executable, "-c", HEAD + script], os.environ, 10_000)
    pids = []
    async with asyncio.timeout(20):
        while (line := await family.receive_line()) != b"ready\n":
            assert line
            pids.append(int(line))
    return family, pids


def descends_from(pid: int) -> list[int]:
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout.split()
    parents = dict(zip(map(int, found[::2]), map(int, found[1::2]), strict=True))
    family = {pid}
    for _ in range(10):
        family |= {each for each, parent in parents.items() if parent in family}
    return sorted(family - {pid})


@pytest.mark.parametrize("how", HIDERS)
def test_nobody_is_left_and_the_wait_is_short(how: str) -> None:
    async def body() -> None:
        family, pids = await started(HIDERS[how] + TAIL)
        members = [*pids, *descends_from(family.pid)]
        assert len(members) >= 2
        began = time.monotonic()
        assert await family.end()
        assert time.monotonic() - began < END_SECONDS
        assert [pid for pid in [family.pid, *members] if is_alive(pid)] == []

    run(body)


@pytest.mark.parametrize("how", HIDERS)
def test_the_family_ends_with_its_program(how: str) -> None:
    """So its pipe ends too, and whoever reads from it hears of it."""

    async def body() -> None:
        family, pids = await started(HIDERS[how] + "say('ready')\nos._exit(3)")
        async with asyncio.timeout(10):
            assert await family.receive_line() == b""
        assert await family.end()
        assert [pid for pid in pids if is_alive(pid)] == []

    run(body)


def test_it_ends_when_its_parent_is_killed() -> None:
    script = HEAD + HIDERS["a child that holds the pipe"] + TAIL
    code = f"""
import asyncio, os, sys
from vcppo.common.process.family import Family
async def main():
    family = await Family.start([sys.executable, "-c", {script!r}], os.environ, 99)
    print(family.pid, int(await family.receive_line()), flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == -signal.SIGKILL
    pids = [int(word) for word in done.stdout.split()]
    end = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < end, "somebody is left"
        time.sleep(0.05)


def test_a_guardian_that_is_killed_costs_a_line_and_no_wait() -> None:
    """Its program ends with it. What that had started goes to the next subreaper up, the launcher, which ends it."""

    async def body() -> None:
        family, pids = await started(HIDERS["a child that holds the pipe"] + TAIL)
        (program,) = set(descends_from(family.pid)) - set(pids)
        os.kill(family.pid, signal.SIGKILL)
        end = time.monotonic() + 5
        while is_alive(program):
            assert time.monotonic() < end, "the program goes on without a guardian"
            await asyncio.sleep(0.02)
        async with asyncio.timeout(END_SECONDS + 1):
            await family.end()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    run(body)


def test_lines_go_both_ways_however_long() -> None:
    async def body() -> None:
        family = await Family.start(
            [sys.executable, "-c", "for line in open(0): print(len(line), flush=True)"], os.environ, 100
        )
        for size in (1, 1000, 3_000_000):
            await family.send(b"x" * size + b"\n")
            assert int(await family.receive_line()) == size + 1
        await family.end()
        with pytest.raises((OSError, ValueError)):
            await family.send(b"x\n")

    run(body)


@pytest.mark.parametrize(
    ("program", "code"),
    [(["sh", "-c", "exit 7"], 7), (["sh", "-c", "kill -9 $$"], 137), (["/no/such/program"], 127)],
)
def test_the_guardian_ends_as_its_program_does(program: list[str], code: int) -> None:
    command = [sys.executable, "-I", "-S", GUARDIAN, str(os.getpid()), *program]
    assert subprocess.run(command, timeout=20, check=False, stderr=subprocess.DEVNULL).returncode == code

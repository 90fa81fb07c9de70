"""What the tests of the sandbox share: programs, how to find them, how to wait."""

from __future__ import annotations

import secrets
import shutil
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

from vcppo.common.sandbox import Job, Layers, Limits

# The system's, where there is one: a user of its own may not reach ours in somebody's home folder.
SYSTEM_PYTHON = Path("/usr/bin/python3")
PYTHON = str(SYSTEM_PYTHON) if SYSTEM_PYTHON.exists() else str(getattr(sys, "_base_executable", sys.executable))
NOTHING: Layers = frozenset()
LIMITS = Limits(cpu_seconds=5, wall_seconds=10, memory_bytes=256 * 2**20, output_bytes=2**16)


def python(source: str, limits: Limits = LIMITS, stdin: bytes = b"") -> Job:
    return Job(
        (PYTHON, "-S", "program.py"),
        (sys.base_prefix,),
        files={"program.py": textwrap.dedent(source).encode()},
        stdin=stdin,
        limits=limits,
    )


FORKING = LIMITS._replace(may_fork=True, wall_seconds=2)
PEEK = "import os, time; time.sleep(0.3); open(f'/proc/{os.getppid()}/environ', 'rb').read()"


SLEEP = str(shutil.which("sleep"))


def marker() -> str:
    """A duration that can be found in the list of processes."""
    return f"100.{secrets.randbelow(10**9):09d}"


def processes(mark: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

"""A Python program as a `Job`: this interpreter, and no installed package."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from vcppo.common.sandbox.job import Job, Limits

_PROGRAM = "program"
# Without the site module a program sees no installed package, on no machine; it is what brings exit and quit, though.
_START = f"""
import builtins, sys
builtins.exit = builtins.quit = sys.exit
del builtins, sys
exec(compile(open("{_PROGRAM}", encoding="utf-8").read(), "{_PROGRAM}", "exec"))
"""


def python_job(
    source: str,
    limits: Limits,
    *,
    stdin: str = "",
    command: Sequence[str] | None = None,
    readable: Sequence[str] = (),
) -> Job:
    """Runs `source`.

    Args:
        command: another program that runs the file ``program``.
        readable: paths beside this Python's own.
    """
    # The interpreter beneath the virtual environment.
    python = getattr(sys, "_base_executable", sys.executable)
    return Job(
        argv=tuple(command or (python, "-S", "-B", "-X", "utf8", "-c", _START)),
        readable=(sys.base_prefix, *readable),
        files={_PROGRAM: source.encode(errors="replace")},
        env={"PYTHONHASHSEED": "0"},  # the same program gets the same verdict
        stdin=stdin.encode(errors="replace"),
        limits=limits,
    )

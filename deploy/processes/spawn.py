"""Starting one process of a spec, with pipes for its output. What fails leaves nothing open."""

from __future__ import annotations

import os
import subprocess
import sys

from vcppo.common.user_modules import SAFE_PATH
from vcppo.deploy.processes.process_spec import ProcessSpec


def spawn(spec: ProcessSpec, null: int) -> subprocess.Popen[bytes]:
    """Start it, in a session of its own, its life tied to ours (`vcppo.deploy.processes.child`).

    The pipes are made here: subprocess' own would stay open where only the first could be had.

    Args:
        null: an open /dev/null, for its stdin.

    Raises:
        OSError: no more processes, files or memory.
    """
    trampoline = [sys.executable, "-m", "vcppo.deploy.processes.child", "--parent", str(os.getpid())]
    if spec.noted_in is not None:
        trampoline += ["--noted-in", str(spec.noted_in), "--name", spec.name]
    if spec.niceness:
        trampoline += ["--niceness", str(spec.niceness)]
    if spec.cores is not None:
        trampoline += ["--cores", ",".join(map(str, sorted(spec.cores)))]
    ends: list[int] = []
    try:
        ends += os.pipe()
        ends += os.pipe()
        process = subprocess.Popen(
            [*trampoline, "--", *spec.command],
            stdin=null,
            stdout=ends[1],
            stderr=ends[3],
            env={**os.environ, **SAFE_PATH, "PYTHONUNBUFFERED": "1", **spec.environment},
            start_new_session=True,
        )
    except OSError:
        for end in ends:
            os.close(end)
        raise
    for end in (ends[1], ends[3]):
        os.close(end)
    process.stdout, process.stderr = (os.fdopen(end, "rb", 0) for end in (ends[0], ends[2]))
    for pipe in (process.stdout, process.stderr):
        os.set_blocking(pipe.fileno(), False)
    return process

"""Trampoline of every child: ties its life to the launcher's, sets its cores and priority, becomes the real program.

    python -m vcppo.deploy.processes.child --parent PID [--cores 0,1] [--niceness 10] [--noted-in FOLDER --name NAME]
                                           -- PROGRAM ARGUMENT...

It exists because this must happen in the child: `preexec_fn` is unsafe once the parent has threads.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from vcppo.common.process.guardian import PR_SET_PDEATHSIG, prctl
from vcppo.common.process.living import note_down


def main(argv: list[str]) -> int:
    """Bind this process to its parent's life, its cores and its niceness, then become `program`."""
    parser = argparse.ArgumentParser(prog="python -m vcppo.deploy.processes.child")
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--cores", default="")
    parser.add_argument("--niceness", type=int, default=0)
    parser.add_argument("--noted-in", type=Path)
    parser.add_argument("--name", default="")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    arguments = parser.parse_args(argv)
    # SIGTERM, not SIGKILL: a child whose launcher was killed still checkpoints, returns leases and ends its children.
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != arguments.parent:  # the launcher died before prctl took effect
        return 1
    if arguments.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core) for core in arguments.cores.split(",")})
    os.nice(arguments.niceness)
    if arguments.noted_in is not None and (note := note_down(arguments.noted_in, arguments.name)) is not None:
        os.set_inheritable(note.fileno(), True)  # the program holds the lock as long as it lives
    program = [word for index, word in enumerate(arguments.program) if not (index == 0 and word == "--")]
    try:
        os.execvp(program[0], program)
    except OSError as error:
        sys.stderr.write(f"cannot start {program[0]}: {error.strerror}\n")
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

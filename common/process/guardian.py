"""Parent of one program and of everything it starts, whose only task is that all of them end together.

    python -I -S guardian.py PARENT_PID PROGRAM ARGUMENT...        (`common.process.family` starts it)

As a subreaper it becomes the parent of every process below it whose own parent died: a double fork, a new session or a
closed pipe hides nobody. It ends the family when the program ends, on SIGTERM, and when its own parent dies: everybody
is stopped first, so that nobody forks meanwhile, then killed, generation by generation, until there is no child left.

Only the standard library, in isolated mode: it is up in 20 ms and imports nothing a user could put in its way. Its exit
code is the program's; 128 + n for one that a signal ended; 127 when there is no such program.
"""

import contextlib
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(arguments: list[str]) -> int:
    """Run the program of `arguments` (parent's pid, program, its arguments); the exit code."""
    parent, program = int(arguments[0]), arguments[1:]
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before prctl took effect
        return 128 + signal.SIGTERM
    awaited = ENDINGS | {signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # they are waited for; a handler would need a wake-up
    guardian, child = os.getpid(), os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # nobody goes on unguarded
        if os.getppid() != guardian:  # it died before prctl took effect
            os._exit(128 + signal.SIGKILL)
        try:
            os.execvp(program[0], program)
        except OSError as error:
            os.write(2, f"cannot start {program[0]}: {error.strerror}\n".encode())
        os._exit(127)
    for descriptor in (0, 1):  # the program's: a pipe must end when the family does
        os.close(descriptor)
    code = follow(child, awaited)
    end_family()
    return code


def prctl(option: int, value: int) -> bool:
    """Linux's prctl(option, value); False where there is none."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)


def follow(child: int, awaited: set[signal.Signals]) -> int:
    """Until the program ends, or somebody wants it to; what else ends here is buried on the way."""
    while True:
        number = signal.sigwait(awaited)
        if number in ENDINGS:
            return 128 + number
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == child:
                    return exit_code(found[1])


def end_family() -> None:
    """Stop all descendants, kill them, and bury every one. Returns when this process has no child any more.

    A process that was forked after the look around comes to us at its parent's death, which is waited for: so there is
    another look around after each.
    """
    for pid in descendants():
        send(pid, signal.SIGSTOP)
    while True:
        for pid in descendants():
            send(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def descendants() -> list[int]:
    """Children first, then theirs."""
    parent_of = parents()
    found, generation = [], {os.getpid()}
    while generation:
        generation = {pid for pid, parent in parent_of.items() if parent in generation}
        found += sorted(generation)
    return found


def parents() -> dict[int, int]:
    """Every process' parent, by pid, from /proc; empty where there is no /proc."""
    found = {}
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        if name.isdigit():
            with contextlib.suppress(OSError, IndexError, ValueError), open(f"/proc/{name}/stat") as file:
                found[int(name)] = int(file.read().rpartition(")")[2].split()[1])
    return found


def send(pid: int, number: int) -> None:
    """One that has gone by itself is as good."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def exit_code(status: int) -> int:
    """As a shell tells it."""
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)

"""The two processes behind a run, from their forks on: the keeper, and what becomes the program.

Everything here happens between fork and execve or exit, in processes that have one thread and nothing to lose.
Descriptors by then: 0 stdin, 1 stdout, 2 stderr, 3 reports to the caller, 4 life line; all others are closed.
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import select
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from vcppo.common.sandbox import filter as seccomp_filter
from vcppo.common.sandbox import kernel
from vcppo.common.sandbox.job import Job, Layers, Limits
from vcppo.common.sandbox.root import enter_own_root, existing

_REPORTS, _LIFE_LINE = 3, 4
# Ids nobody has: outside what distributions, systemd and user databases give out, and below 65536, which is
# as far as many containers go. By the keeper's process id, so that programs running at once differ.
_FIRST_ID, _NUM_IDS = 60706, 478


def keep(job: Job, layers: Layers, box: str, descriptors: Sequence[int]) -> NoReturn:
    """Be the keeper, in a fork of the caller: start the program, report how it ended, leave nothing of it.

    Args:
        box: an empty folder; it is removed in the end.
        descriptors: what is to become 0 … 4.
    """
    outcome: dict[str, object] = {}
    try:
        _arrange(descriptors)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # the caller may be gone
        outcome = _keep(job, layers, box)
    except Exception as error:  # noqa: BLE001  (whatever it is, it must not get back into the caller's code)
        outcome = {"error": f"{type(error).__name__}: {error}"}
    finally:
        try:
            shutil.rmtree(box, ignore_errors=True)  # nobody is left to tell
            _report(outcome)
        finally:
            os._exit(0)


def _keep(job: Job, layers: Layers, box: str) -> dict[str, object]:
    os.setsid()
    kernel.adopt_orphans()
    user = _FIRST_ID + os.getpid() % _NUM_IDS
    num_others = 0
    if "namespaces" in layers:
        num_others += _leave_namespaces(user)
    if os.geteuid() != user and "user" not in layers:
        num_others += _count_tasks(os.getuid())
    program = os.fork()
    if program == 0:
        _become(job, layers, box, user, num_others)
    kernel.hide_memory()
    watch = select.poll()
    watch.register(os.pidfd_open(program), select.POLLIN)
    watch.register(_LIFE_LINE, select.POLLIN)
    watch.poll()
    return _kill_all(program)


def _kill_all(program: int) -> dict[str, object]:
    """Kill and reap the program and every descendant, as each becomes our child; returns how the program ended."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    status, cpu = 0, 0.0
    alive = [program]
    while True:
        for child in alive:
            os.kill(child, signal.SIGKILL)
        try:
            # Wait only for those just killed: they die, while one that came up since then need not.
            child, ended, usage = os.wait4(-1, 0 if alive else os.WNOHANG)
        except ChildProcessError:
            return {"status": status, "cpu": cpu}
        if child:
            cpu += usage.ru_utime + usage.ru_stime
            status = ended if child == program else status
        alive = [int(pid) for pid in children.read_text().split()]


def _leave_namespaces(user: int) -> int:
    """New ones for the children (and all but the first for this process); returns how many tasks the new user has."""
    inner = kernel.NEW_PIDS | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS
    outer_user, outer_group = os.geteuid(), os.getegid()
    try:
        kernel.unshare(inner)
        return 0
    except PermissionError:
        pass  # not root, or root of a container: perhaps with a user namespace around them
    kernel.unshare(kernel.NEW_USER | inner)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{user} {outer_user} 1")
    Path("/proc/self/gid_map").write_text(f"{user} {outer_group} 1")
    return 1


def _become(job: Job, layers: Layers, box: str, user: int, num_others: int) -> NoReturn:
    try:
        os.close(_LIFE_LINE)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        _confine(job, layers, box, user)
        _limit(job.limits, num_others)
        if "seccomp" in layers:
            kernel.install_filter(seccomp_filter.build(os.getpid(), job.limits.may_fork))
        for memory in (resource.RLIMIT_DATA, resource.RLIMIT_AS):  # last: this process is larger than the program
            _set_limit(memory, job.limits.memory_bytes)
        os.execve(job.argv[0], job.argv, dict(job.env))
    except Exception as error:  # noqa: BLE001  (as above)
        _report({"error": f"{type(error).__name__}: {error}"})
    finally:
        os._exit(127)


def _confine(job: Job, layers: Layers, box: str, user: int) -> None:
    """Every layer but the system-call filter, in the one order in which each still may do what the next needs."""
    os.umask(0o022)
    Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this one goes first
    readable = existing(job.readable)
    own_folder = "namespaces" in layers
    if own_folder:
        work = enter_own_root(box, readable, job.limits.disk_bytes, user if "user" in layers else os.geteuid())
    else:
        work = box
        os.chmod(work, 0o755)  # noqa: S103  (the program runs as another user and reads it)
    os.chdir(work)
    for name, content in job.files.items():
        Path(work, name).write_bytes(content)
    kernel.no_new_privileges()
    if "landlock" in layers:
        if "seccomp" not in layers and kernel.landlock_version() < 3:
            raise OSError("Landlock before version 3 lets files be truncated, which only the seccomp layer prevents")
        kernel.landlock([*readable, work], ["/dev/null", *([work] if own_folder else [])])
    if "user" in layers:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    kernel.no_capabilities()
    kernel.die_with_parent(signal.SIGKILL)  # after the change of user, which clears it


def _limit(limits: Limits, num_others: int) -> None:
    """All but the memory."""
    # The kernel ends it: by SIGXCPU at the soft limit, or a second later, as the first process of a namespace may not.
    seconds = int(limits.cpu_seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    _set_limit(resource.RLIMIT_NPROC, limits.num_tasks + num_others)
    _set_limit(resource.RLIMIT_NOFILE, limits.open_files)
    _set_limit(resource.RLIMIT_FSIZE, limits.file_bytes)
    for none in (
        resource.RLIMIT_CORE,
        resource.RLIMIT_MEMLOCK,
        resource.RLIMIT_MSGQUEUE,
        resource.RLIMIT_NICE,
        resource.RLIMIT_RTPRIO,
    ):
        _set_limit(none, 0)


def _set_limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _count_tasks(user: int) -> int:
    """Tasks that count against this user's limit already. A process that ends meanwhile is not counted."""
    count = 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            count += len(os.listdir(process / "task")) if process.stat().st_uid == user else 0
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return count


def _arrange(descriptors: Sequence[int]) -> None:
    """Make them 0, 1, …, close all others, and forget the caller's signal handlers."""
    aside = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 64) for descriptor in descriptors]
    for target, descriptor in enumerate(aside):
        os.dup2(descriptor, target, inheritable=target < _REPORTS)
    os.closerange(len(aside), max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 4096))
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _report(content: dict[str, object]) -> None:
    os.write(_REPORTS, json.dumps(content).encode() + b"\n")

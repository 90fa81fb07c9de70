"""The seccomp filter: which system calls a program may make, as classic BPF for x86-64.

A list of what is allowed, so what the kernel learns tomorrow is refused. Interpreted languages and what compilers make
need no more than this to read, compute and write. Left out on purpose, beside the obvious: memory that no limit
counts (memfd, System V), io_uring (its requests pass no filter), and what Landlock does not see (chmod, chown, utime,
truncate by path, extended attributes).
"""

from __future__ import annotations

import errno
import itertools
import platform
import struct
from typing import NamedTuple

_FREE = {
    # read and write
    "read": 0, "write": 1, "close": 3, "poll": 7, "lseek": 8, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "pipe": 22, "select": 23, "dup": 32, "dup2": 33, "sendfile": 40, "flock": 73,
    "fsync": 74, "fdatasync": 75, "ftruncate": 77, "fadvise64": 221, "pselect6": 270, "ppoll": 271, "dup3": 292,
    "pipe2": 293, "preadv": 295, "pwritev": 296, "copy_file_range": 326, "close_range": 436,
    "epoll_create": 213, "epoll_wait": 232, "epoll_ctl": 233, "epoll_pwait": 281, "epoll_create1": 291,
    "epoll_pwait2": 441, "eventfd": 284, "eventfd2": 290, "timerfd_create": 283, "timerfd_settime": 286,
    "timerfd_gettime": 287,
    # of a connected pair of sockets (below)
    "sendto": 44, "recvfrom": 45, "shutdown": 48, "getsockname": 51, "getpeername": 52, "getsockopt": 55,
    # files by name: what it may see is the business of other layers
    "stat": 4, "fstat": 5, "lstat": 6, "access": 21, "getdents": 78, "getcwd": 79, "chdir": 80, "fchdir": 81,
    "rename": 82, "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89, "umask": 95,
    "statfs": 137, "fstatfs": 138, "getdents64": 217, "mkdirat": 258, "newfstatat": 262, "unlinkat": 263,
    "renameat": 264, "linkat": 265, "symlinkat": 266, "readlinkat": 267, "faccessat": 269, "renameat2": 316,
    "statx": 332, "faccessat2": 439,
    # memory
    "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "mremap": 25, "msync": 26, "mincore": 27, "madvise": 28,
    # itself: programs, threads, signals, limits (nobody can raise a hard one)
    "execve": 59, "exit": 60, "wait4": 61, "waitid": 247, "exit_group": 231, "arch_prctl": 158, "futex": 202,
    "set_tid_address": 218, "set_robust_list": 273, "get_robust_list": 274, "rseq": 334, "membarrier": 324,
    "rt_sigaction": 13, "rt_sigprocmask": 14, "rt_sigreturn": 15, "rt_sigpending": 127, "rt_sigtimedwait": 128,
    "rt_sigsuspend": 130, "sigaltstack": 131, "restart_syscall": 219, "pause": 34, "alarm": 37, "getitimer": 36,
    "setitimer": 38, "sched_yield": 24, "setpgid": 109, "setsid": 112, "getrlimit": 97, "setrlimit": 160,
    # questions
    "getpid": 39, "uname": 63, "getrusage": 98, "sysinfo": 99, "times": 100, "getuid": 102, "getgid": 104,
    "geteuid": 107, "getegid": 108, "getppid": 110, "getpgrp": 111, "getgroups": 115, "getresuid": 118,
    "getresgid": 120, "getpgid": 121, "getsid": 124, "getpriority": 140, "sched_getparam": 143,
    "sched_getscheduler": 145, "sched_get_priority_max": 146, "sched_get_priority_min": 147, "gettid": 186,
    "sched_getaffinity": 204, "getcpu": 309, "getrandom": 318,
    # time
    "nanosleep": 35, "gettimeofday": 96, "time": 201, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230,
}  # fmt: skip
_FORK, _VFORK, _CLONE3 = 57, 58, 435
_NEW_NAMESPACES, _THREAD = 0x7E020080, 0x00010000
_TRUNCATE, _WRITE_MODES, _WHOLE = 0o1000, 0o3, 0xFFFFFFFF


class _Check(NamedTuple):
    """Allowed if ``argument & mask == value`` (or if not), and all other checks of the same call hold too.

    32 bits are looked at: the kernel reads no more of these arguments.
    """

    number: int
    argument: int
    mask: int
    value: int
    equal: bool = True


def build(own_pid: int, may_fork: bool) -> bytes:
    """The filter for one program, `struct sock_filter` after another.

    Args:
        own_pid: its process id as it sees it itself: the only one it may send signals to.
        may_fork: may it start processes, or only threads?

    Raises:
        OSError: not on this architecture.
    """
    if platform.machine() != "x86_64":
        raise OSError(errno.ENOSYS, f"the list of system calls is for x86_64, not {platform.machine()}")
    checks = [
        # A truncating open for reading: Landlock before version 3 takes it for reading.
        _Check(2, 1, _TRUNCATE | _WRITE_MODES, _TRUNCATE, equal=False),  # open
        _Check(257, 2, _TRUNCATE | _WRITE_MODES, _TRUNCATE, equal=False),  # openat
        # What lets a descriptor send signals to whom it likes: ownership, signal number, asynchronous mode.
        *(_Check(72, 1, _WHOLE, command, equal=False) for command in (8, 10, 15)),  # fcntl
        _Check(16, 1, 0xFFFFFF00, 0x5400),  # ioctl: of terminals (is it one?) and pipes, none of file systems
        *(_Check(16, 1, _WHOLE, request, equal=False) for request in (0x5412, 0x5452)),  # typing; asynchronous mode
        _Check(53, 1, 0xF, 1),  # socketpair: streams only, datagram sockets could send elsewhere
        _Check(56, 0, _NEW_NAMESPACES | (0 if may_fork else _THREAD), 0 if may_fork else _THREAD),  # clone
        _Check(62, 0, _WHOLE, own_pid),  # kill
        _Check(234, 0, _WHOLE, own_pid),  # tgkill
        _Check(157, 0, _WHOLE, 15),  # prctl: only PR_SET_NAME
        _Check(302, 0, _WHOLE, 0),  # prlimit64: only its own
    ]
    free = [*_FREE.values(), *((_FORK, _VFORK) if may_fork else ())]
    return b"".join(
        [
            _load(4),  # architecture: a 32-bit call would mean other numbers
            _jump_if(0xC000003E, 1, 0),
            _return(0x80000000),  # kill
            _load(0),
            *(_jump_if(number, 0, 1) + _allow() for number in free),
            *(_checked(list(group)) for _, group in itertools.groupby(checks, lambda check: check.number)),
            _jump_if(_CLONE3, 0, 1) + _refuse(errno.ENOSYS),  # its flags are out of a filter's sight; libc takes clone
            _refuse(errno.EPERM),
        ]
    )


def _checked(checks: list[_Check]) -> bytes:
    """Allow the call if all hold, refuse it if one does not; go on if it is another call."""
    body = b"".join(
        _load(16 + 8 * check.argument)
        + _instruction(0x54, check.mask)  # and
        + _jump_if(check.value, *((1, 0) if check.equal else (0, 1)))
        + _refuse(errno.EPERM)
        for check in checks
    )
    return _jump_if(checks[0].number, 0, len(body) // 8 + 1) + body + _allow()


def _load(offset: int) -> bytes:
    return _instruction(0x20, offset)


def _jump_if(value: int, if_equal: int, if_not: int) -> bytes:
    """Skip so many instructions."""
    return _instruction(0x15, value, if_equal, if_not)


def _allow() -> bytes:
    return _return(0x7FFF0000)


def _refuse(code: int) -> bytes:
    return _return(0x00050000 | code)


def _return(action: int) -> bytes:
    return _instruction(0x06, action)


def _instruction(code: int, operand: int, if_equal: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_equal, if_not, operand)

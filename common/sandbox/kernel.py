"""The few Linux calls that Python's library lacks, through the C library. Each raises OSError naming itself."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from pathlib import Path

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
READ_ONLY, NO_SUID, NO_DEV = 1, 2, 4  # mount attributes

# The same numbers on every architecture, but for pivot_root.
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}

_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE = -100, 0x1000, 0x8000
_MS_PRIVATE_ALL, _MNT_DETACH = 0x4000 | 0x40000, 2
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_SUBREAPER, _SET_NO_NEW_PRIVS = 1, 4, 22, 36, 38

_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` (``NEW_…``) for new, empty ones."""
    _check("unshare", _libc.unshare(flags))


def no_new_privileges() -> None:
    """From here on no execve gives this process more rights: set-user-id bits are ignored."""
    _prctl("no_new_privs", _SET_NO_NEW_PRIVS, 1)


def no_capabilities() -> None:
    """Give up root's powers; after `no_new_privileges` not even an execve as user 0 brings them back."""
    header, empty = struct.pack("=Ii", 0x20080522, 0), bytes(24)
    _check("capset", _libc.capset(header, empty))


def die_with_parent(signal_number: int) -> None:
    """Send this process that signal when its parent ends."""
    _prctl("pdeathsig", _SET_PDEATHSIG, signal_number)


def adopt_orphans() -> None:
    """Orphaned descendants become this process' children."""
    _prctl("child_subreaper", _SET_SUBREAPER, 1)


def hide_memory() -> None:
    """No other process of this user may look into this one."""
    _prctl("dumpable", _SET_DUMPABLE, 0)


def install_filter(program: bytes) -> None:
    """Pass every further system call through a classic BPF program (8 bytes an instruction); needs no_new_privs."""
    code = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(code))  # struct sock_fprog
    _prctl("seccomp", _SET_SECCOMP, 2, header)


def make_mounts_private() -> None:
    """Mounts made from now on in this mount namespace stay in it."""
    _check("mount", _libc.mount(None, b"/", None, ctypes.c_ulong(_MS_PRIVATE_ALL), None))


def mount_tmpfs(target: str, options: str) -> None:
    """An empty file system in memory at `target`."""
    flags = ctypes.c_ulong(NO_SUID | NO_DEV)
    _check("mount tmpfs", _libc.mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, options.encode()))


def bind(source: str, target: str, attributes: int) -> None:
    """Show `source`, with what is mounted below it, at `target` too, with further attributes."""
    tree = _syscall("open_tree", _OPEN_TREE, _AT_FDCWD, os.fsencode(source), 1 | _AT_RECURSIVE | os.O_CLOEXEC)
    try:
        restrict = struct.pack("4Q", attributes, 0, 0, 0)  # struct mount_attr
        _syscall("mount_setattr", _MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, restrict, len(restrict))
        _syscall("move_mount", _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), 4)
    finally:
        os.close(tree)


def seal(mount_point: str) -> None:
    """Make one mount read-only, and not those below it."""
    restrict = struct.pack("4Q", READ_ONLY, 0, 0, 0)
    _syscall("mount_setattr", _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(mount_point), 0, restrict, len(restrict))


def change_root(folder: str) -> None:
    """`folder`, a mount point, becomes the root; the old root is out of reach."""
    os.chdir(folder)
    _syscall("pivot_root", _PIVOT_ROOT[platform.machine()], b".", b".")
    _check("umount2", _libc.umount2(b".", _MNT_DETACH))
    os.chdir("/")


def landlock_version() -> int:
    """The kernel's Landlock version; OSError where it has none."""
    return _syscall("landlock", _LANDLOCK_CREATE, None, 0, 1)


def landlock(readable: list[str], writable: list[str]) -> None:
    """Files: read and execute below `readable`, anything below `writable`, nothing else. Needs no_new_privs.

    Where the kernel knows how, also no TCP, and no signals or abstract sockets to processes outside.
    """
    version = landlock_version()
    every = (1 << (13 + min(max(version - 1, 0), 2) + (version >= 5))) - 1  # 13 rights in version 1; 2, 3, 5 add one
    execute_and_read, only_files = 0b1101, 0b1100000000000111
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = _syscall("landlock", _LANDLOCK_CREATE, struct.pack("3Q", every, 0b11, 0b11)[:size], size, 0)
    try:
        for paths, rights in ((readable, execute_and_read), (writable, every)):
            for path in paths:
                mask = rights if Path(path).is_dir() else rights & only_files
                where = os.open(path, os.O_PATH | os.O_CLOEXEC)
                _syscall("landlock rule", _LANDLOCK_ADD, rules, 1, struct.pack("=Qi", mask, where), 0)
                os.close(where)
        _syscall("landlock", _LANDLOCK_RESTRICT, rules, 0)
    finally:
        os.close(rules)


def _prctl(name: str, option: int, *arguments: int | bytes) -> None:
    given = [*arguments, 0, 0, 0, 0][:4]
    _check(f"prctl({name})", _libc.prctl(option, *map(_argument, given)))


def _syscall(name: str, number: int, *arguments: int | bytes | None) -> int:
    return _check(name, _libc.syscall(ctypes.c_long(number), *map(_argument, arguments)))


def _argument(value: int | bytes | None) -> ctypes.c_long | bytes | None:
    """ctypes would pass a plain int with 32 bits."""
    return ctypes.c_long(value) if isinstance(value, int) else value


def _check(name: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result

"""A file tree of the program's own: system libraries and interpreter to read, a folder in memory to write, no more."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vcppo.common.sandbox import kernel

_SYSTEM = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/dev/zero", "/dev/urandom")
_WORK = "/work"


def existing(readable: Iterable[str]) -> list[str]:
    """What a program may read: the system's part and `readable`, as far as it is there."""
    return [path for path in (*_SYSTEM, *readable) if os.path.exists(path)]


def enter_own_root(box: str, readable: list[str], disk_bytes: int, user: int) -> str:
    """Leave the file tree for a new one in which only `readable`, ``/dev/null`` and a writable folder exist.

    Args:
        box: an empty folder of the old tree, for a mount point.
        disk_bytes: size of the writable folder.
        user: whose it is.

    Returns:
        the writable folder.
    """
    kernel.unshare(kernel.NEW_MOUNTS)
    kernel.make_mounts_private()
    kernel.mount_tmpfs(box, "size=1m,mode=755")
    for path in [*readable, "/dev/null"]:
        target = Path(box + path)
        if target.exists():  # below one that is there already
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if os.path.isdir(path):
            target.mkdir()
        else:
            target.touch()
        is_device = path.startswith("/dev/")
        kernel.bind(path, str(target), kernel.READ_ONLY | kernel.NO_SUID | (0 if is_device else kernel.NO_DEV))
    work = Path(box + _WORK)
    work.mkdir()
    kernel.mount_tmpfs(str(work), f"size={disk_bytes},nr_inodes=1024,mode=755,uid={user}")
    kernel.change_root(box)
    kernel.seal("/")
    return _WORK

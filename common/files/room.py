"""What may run out under a process: which errors say so, what it is, and where. Nothing here waits.

Known: disk space, inodes, a quota, the largest file a process may write, open files, memory, processes. Whoever writes
decides what a shortage means: `vcppo.common.process.patience` waits for room, `vcppo.common.files.kept_lines` keeps
lines until there is some, and a process that can do neither ends with `ResourceExhausted`, to be started again.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vcppo.common.errors import ResourceExhausted

_BY_ERRNO = {
    errno.ENOSPC: "disk space",
    errno.EDQUOT: "disk quota",
    errno.EFBIG: "file size",
    errno.EMFILE: "open files",
    errno.ENFILE: "open files of the machine",
    errno.ENOMEM: "memory",
}
# Of libraries that have no error number: safetensors (Rust), torch's writer, whatever prints strerror.
_BY_TEXT = (
    (re.compile(r"No space left on device|PytorchStreamWriter failed|file write failed", re.IGNORECASE), "disk space"),
    (re.compile(r"unexpected pos \d+ vs \d+|iostream error"), "disk space"),  # torch's zip writer, on closing its file
    # Redis, whose own line says no more; with appendfsync "always" it ends after it.
    (re.compile(r"Short write while writing to the AOF|AOF write error|Error writing to the AOF"), "disk space"),
    (re.compile(r"Disk quota exceeded", re.IGNORECASE), "disk quota"),
    (re.compile(r"File too large", re.IGNORECASE), "file size"),
    (re.compile(r"Too many open files", re.IGNORECASE), "open files"),
    (re.compile(r"Cannot allocate memory", re.IGNORECASE), "memory"),
    (re.compile(r"can't start new thread|fork: (retry: )?Resource temporarily", re.IGNORECASE), "processes"),
)
_REMEDIES = {
    "disk space": "free some there, or enlarge the disk",
    "inodes": "remove files there: the file system has no room for more of them",
    "disk quota": "free some there, or raise the quota",
    "file size": "raise the limit of one file's size (ulimit -f)",
    "open files": "raise the limit (ulimit -n)",
    "open files of the machine": "raise fs.file-max, or stop what holds so many",
    "memory": "stop something, or give the machine or its control group more",
    "processes": "stop something, or raise the limit (ulimit -u, or pids.max of the control group)",
}
ON_DISK = frozenset({"disk space", "inodes", "disk quota", "file size"})
_MIB = 2**20


@dataclass(frozen=True)
class Shortage:
    """A resource that has run out.

    Attributes:
        resource: its name, e.g. ``disk space``.
        folder: where; None for what is not on a disk.
    """

    resource: str
    folder: Path | None = None

    @property
    def remedy(self) -> str:
        """What a person can do."""
        return _REMEDIES[self.resource]

    def as_fields(self) -> dict[str, object]:
        """For a log line: resource, folder and what is free there, remedy."""
        if self.folder is None:
            return {"resource": self.resource, "remedy": self.remedy}
        room = room_of(self.folder)
        free = {} if room is None else {"free_mib": round(room.free / _MIB, 1), "free_inodes": room.inodes}
        return {"resource": self.resource, "folder": str(self.folder), **free, "remedy": self.remedy}

    def __str__(self) -> str:
        where = "" if self.folder is None else f" in {self.folder}"
        return f"out of {self.resource}{where}: {self.remedy}"


@dataclass(frozen=True)
class Room:
    """What a file system has left.

    Attributes:
        free: bytes.
        inodes: how many more files; None where the file system does not count them.
        device: two folders of one have the same.
    """

    free: int
    inodes: int | None
    device: int


def room_of(folder: Path) -> Room | None:
    """Of the file system that `folder` is on, or will be made on; None when it can't be asked."""
    try:
        place = nearest_existing(folder)
        found = os.statvfs(place)
        return Room(found.f_bavail * found.f_frsize, found.f_favail if found.f_files else None, place.stat().st_dev)
    except OSError:
        return None


def nearest_existing(path: Path) -> Path:
    """The path itself, or the folder that it would be made in."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def shortage_of(error: BaseException, folder: Path | None = None, *, starting: bool = False) -> Shortage | None:
    """What an error, or one that it comes from, says has run out; None: it says something else.

    Args:
        folder: where it happened, if it was on a disk and the error itself does not know.
        starting: a process was being started: EAGAIN then means that there may be no more of them.
    """
    for each in _chain(error):
        if (found := _resource(each, starting)) is not None:
            if found not in ON_DISK:
                return Shortage(found)
            place = _place(each) or folder
            return Shortage("inodes" if found == "disk space" and _has_no_inodes(place) else found, place)
    return None


def resource_named(text: str) -> str | None:
    """Which resource a line of anybody's log says has run out."""
    return next((resource for pattern, resource in _BY_TEXT if pattern.search(text)), None)


def exhausted(shortage: Shortage, what: str) -> ResourceExhausted:
    """The end of a process that could not do `what` for it."""
    return ResourceExhausted(f"{what}: {shortage}", shortage.resource)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    each: BaseException | None = error
    while each is not None and id(each) not in seen:
        seen.add(id(each))
        yield each
        each = each.__cause__ or each.__context__


def _resource(error: BaseException, starting: bool) -> str | None:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, OSError) and error.errno is not None:
        if starting and error.errno == errno.EAGAIN:
            return "processes"
        return _BY_ERRNO.get(error.errno)
    return resource_named(str(error)) if isinstance(error, Exception) else None


def _place(error: BaseException) -> Path | None:
    name = getattr(error, "filename", None)
    if not isinstance(name, str | os.PathLike) or not str(name):
        return None
    path = Path(name)
    return path if path.is_dir() else path.parent


def _has_no_inodes(folder: Path | None) -> bool:
    room = None if folder is None else room_of(folder)
    return room is not None and room.inodes == 0

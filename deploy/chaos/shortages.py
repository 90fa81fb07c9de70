"""Shortages made on purpose: a disk that is full, a live process that may open no more files or write no more bytes.

Each has `strike` and `undo`; `undo` may be called twice, and when `strike` never was.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
from pathlib import Path

_BLOCKS = (1 << 20, 1 << 12, 1)
_MAX_BYTES = 1 << 30


class FilledDisk:
    """Takes all the room of the file system that `folder` is on, which must be a small one of its own.

    Raises:
        ValueError: there is more than a GiB free: it is no disk for this.
    """

    def __init__(self, folder: Path) -> None:
        found = os.statvfs(folder)
        if found.f_bavail * found.f_frsize > _MAX_BYTES:
            raise ValueError(f"{folder} has more than {_MAX_BYTES >> 30} GiB free: mount a small tmpfs there")
        self._file = folder / ".filled-by-chaos"

    def strike(self) -> None:
        """Fill it to the last byte; also what was freed since the last time."""
        with self._file.open("ab", buffering=0) as file:
            for size in _BLOCKS:
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size) == size:
                        pass

    def undo(self) -> None:
        """Room again."""
        self._file.unlink(missing_ok=True)


class UsedInodes:
    """Takes all the inodes of the file system that `folder` is on, which must have few (tmpfs: nr_inodes)."""

    def __init__(self, folder: Path, most: int = 10_000) -> None:
        self._folder, self._most = folder / ".inodes-used-by-chaos", most

    def strike(self) -> None:
        """Make empty files until no more can be made. Raises ValueError when that does not come."""
        self._folder.mkdir(exist_ok=True)
        for number in range(self._most):
            try:
                (self._folder / str(number)).touch()
            except OSError as error:
                if error.errno == errno.ENOSPC:
                    return
                raise
        raise ValueError(f"{self._folder.parent} takes more than {self._most} files: mount a small tmpfs there")

    def undo(self) -> None:
        """Room again."""
        for path in self._folder.glob("*"):
            path.unlink()
        if self._folder.is_dir():
            self._folder.rmdir()


class LoweredLimit:
    """A soft limit of a live process (prlimit): ``RLIMIT_NOFILE``: too many open files; ``RLIMIT_FSIZE``: its files are
    too large. Writing past the latter also sends SIGXFSZ, which ends programs that are not Python.
    """

    def __init__(self, pid: int, limit: int, value: int | None = None) -> None:
        self.pid, self._limit, self._before = pid, limit, resource.prlimit(pid, limit)
        self._value = num_open_files(pid) if value is None else value

    def strike(self) -> None:
        """From now on the limit is the given one; without one, as many files as the process has open."""
        resource.prlimit(self.pid, self._limit, (self._value, self._before[1]))

    def lower(self, value: int) -> None:
        """Strike again where `value` is lower than the limit set so far. ProcessLookupError: the process has ended."""
        if value < self._value:
            self._value = value
            self.strike()

    def undo(self) -> None:
        """The limit is what it was. The process may have ended."""
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(self.pid, self._limit, self._before)


def num_open_files(pid: int) -> int:
    """One more than the highest number of an open file: below it there may be gaps."""
    return max(map(int, os.listdir(f"/proc/{pid}/fd")), default=0) + 1

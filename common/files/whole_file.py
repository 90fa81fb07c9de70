"""Files that are either whole or not there, whenever the process dies. All renaming is done in this room.

Nothing here is fsynced but where `sync` asks for it: after a power cut the newest may be missing, or empty on some file
systems. Where that matters the caller syncs (`vcppo.learner.engine.checkpoint`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

_PARTIAL = ".partial"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; it replaces `path` when the block ends well, and goes when it does not.

    Several processes may write the same `path`: the last one's stays. Within a process, one at a time.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{_PARTIAL}")
    try:
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace `path` by a file of `content`; text in UTF-8."""
    with whole_file(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def append_whole(file: FileIO, content: bytes, *, sync: bool = False) -> None:
    """Add `content` at the end of an unbuffered file; with `sync` it is on the disk when this returns.

    Raises:
        OSError: the file is then as it was before.
    """
    size, view = file.seek(0, os.SEEK_END), memoryview(content)
    try:
        while view:
            view = view[file.write(view) :]
        if sync:
            os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(size)
        raise


def remove_partial_files(folder: Path) -> None:
    """Remove what writers that were killed have left; for a folder that nobody else writes to."""
    for leftover in folder.glob(f".*{_PARTIAL}"):
        leftover.unlink()


def move(path: Path, target: Path) -> None:
    """Give a file or folder another name in the same file system: at once, never half. A file there is replaced."""
    path.replace(target)

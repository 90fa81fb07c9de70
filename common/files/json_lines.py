"""JSON lines, appended by one process and read by others while it goes on: one reader, one way to append.

A crash, a full disk or another program may leave anything in such a file: half a line, NUL bytes, text that is not
UTF-8, an object nested a thousand deep. No such line ends its reader: it is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import IO, Any

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.files.whole_file import append_whole

Row = dict[str, Any]

MAX_LINE_BYTES = 16 << 20
"""A longer line is no line of ours: it is passed over without being held in memory."""
_CHUNK_BYTES = 1 << 20


def parse_object(line: str | bytes) -> Row | None:
    """The object of one line; None of anything else."""
    try:
        found = parse_json(line)
    except JsonError:
        return None
    return found if isinstance(found, dict) else None


class JsonLinesTail:
    """Reads what was appended to a file since the last call; a missing file has nothing yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._partial = b""
        self._is_too_long = False  # the line that is being read

    def read(self) -> list[Row]:
        """Rows appended since the last call; none while there is no file.

        A line without an end yet waits for the next call.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                return [row for line in self._whole_lines(file) if (row := parse_object(line)) is not None]
        except FileNotFoundError:
            return []

    def rest(self) -> list[Row]:
        """The last line, if it is whole but for its end."""
        row = parse_object(self._partial)
        return [] if row is None else [row]

    def _whole_lines(self, file: IO[bytes]) -> Iterator[bytes]:
        while chunk := file.read(_CHUNK_BYTES):
            self._offset += len(chunk)
            first, *lines = chunk.split(b"\n")
            self._partial += b"" if self._is_too_long else first
            for line in lines:  # each of them begins where the one before ended
                if not self._is_too_long:
                    yield self._partial
                self._is_too_long, self._partial = False, line
            if len(self._partial) > MAX_LINE_BYTES:
                self._is_too_long, self._partial = True, b""


def lines_from(path: Path, offset: int) -> Iterator[tuple[Row | None, int]]:
    """Each whole line behind byte `offset`, None for one that is no object, and the byte it ends at.

    A missing file has none, a line without an end is not there yet.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        file.seek(offset)
        while (line := file.readline(MAX_LINE_BYTES)).endswith(b"\n") or len(line) == MAX_LINE_BYTES:
            offset += len(line)
            yield parse_object(line), offset


def read_json_lines(path: Path) -> list[Row]:
    """Every object of a file, also of a last line without an end; a missing file has none."""
    tail = JsonLinesTail(path)
    return [*tail.read(), *tail.rest()]


def newest_json_lines(path: Path, most_bytes: int) -> tuple[list[Row], bool]:
    """Objects of whole lines in the last `most_bytes` of a file, and whether those are all of it.

    A missing file has none.
    """
    try:
        with path.open("rb") as file:
            begin = max(0, file.seek(0, os.SEEK_END) - most_bytes)
            file.seek(begin)
            first, *lines = file.read(most_bytes).split(b"\n")
    except FileNotFoundError:
        return [], True
    # A piece may be the middle of a line: without its beginning it is no object, or another one.
    whole = lines if begin else [first, *lines]
    return [row for line in whole if (row := parse_object(line)) is not None], not begin


class LineFile:
    """Lines at the end of a file, each whole or not there; for one writer. The file is opened, or made, at the first.

    What a crashed predecessor left of a line is closed off first, so that the next one is not glued to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None

    def write(self, lines: bytes, *, sync: bool = False) -> None:
        """Append `lines`, which end in a newline; with `sync` they are on the disk when this returns.

        Raises OSError; the file is then as it was before.
        """
        append_whole(self._opened(), lines, sync=sync)

    def close(self) -> None:
        """Close the file; a later line opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> FileIO:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(self.path, "a+")
            try:
                _end_torn_line(file)
            except OSError:
                file.close()
                raise
            self._file = file
        return self._file


def _end_torn_line(file: FileIO) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if size and file.read(1) != b"\n":
        file.write(b"\n")


def append_line(path: Path, line: bytes) -> None:
    """One line at the end of a file. Raises OSError; the file is then as it was before."""
    file = LineFile(path)
    try:
        file.write(line)
    finally:
        file.close()

"""Lines at the end of a file: whole or not there, and kept where there is no room."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.files import json_lines
from vcppo.common.files.json_lines import LineFile, append_line
from vcppo.common.files.kept_lines import KeptLines


class SmallDisk(json_lines.FileIO):
    """A file on a disk that takes so many bytes; a write past them is short, the next one fails."""

    room = 1 << 30

    def write(self, data: object) -> int:
        view = memoryview(data)[: max(0, SmallDisk.room)]  # type: ignore[call-overload]
        if not view:
            raise OSError(errno.ENOSPC, "No space left on device")
        SmallDisk.room -= len(view)
        return super().write(view)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> type[SmallDisk]:
    monkeypatch.setattr(json_lines, "FileIO", SmallDisk)
    SmallDisk.room = 1 << 30
    return SmallDisk


def test_a_line_that_does_not_fit_leaves_no_part(disk: type[SmallDisk], tmp_path: Path) -> None:
    file = LineFile(tmp_path / "a.jsonl")
    file.write(b"first\n")
    disk.room = 3
    with pytest.raises(OSError, match="No space"):
        file.write(b"second\n")
    assert (tmp_path / "a.jsonl").read_bytes() == b"first\n"
    disk.room = 100
    file.write(b"third\n")
    assert (tmp_path / "a.jsonl").read_bytes() == b"first\nthird\n"


def test_a_torn_line_is_closed_off(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.jsonl"
    append_line(path, b"one\n")
    path.write_bytes(b'{"torn')
    append_line(path, b"two\n")
    assert path.read_bytes() == b'{"torn\ntwo\n'


def test_kept_lines_are_written_in_order_when_there_is_room(disk: type[SmallDisk], tmp_path: Path) -> None:
    lines = KeptLines(tmp_path / "a.jsonl")
    assert lines.write(b"0\n") is None
    disk.room = 0
    errors = [lines.write(b"%d\n" % number) for number in (1, 2)]
    assert all(error is not None and error.errno == errno.ENOSPC for error in errors)
    assert len(lines) == 2
    disk.room = 100
    assert lines.write(b"3\n") is None
    assert (tmp_path / "a.jsonl").read_bytes() == b"0\n1\n2\n3\n"
    assert lines.lost == 0


def test_the_oldest_go_when_too_many_are_kept(disk: type[SmallDisk], tmp_path: Path) -> None:
    lines = KeptLines(tmp_path / "a.jsonl", max_kept_bytes=5)
    disk.room = 0
    for number in range(4):
        lines.write(b"%d\n" % number)
    assert (lines.lost, len(lines)) == (2, 2)
    disk.room = 100
    lines.close()
    assert (tmp_path / "a.jsonl").read_bytes() == b"2\n3\n"


def test_what_is_kept_at_the_end_is_counted(disk: type[SmallDisk], tmp_path: Path) -> None:
    lines = KeptLines(tmp_path / "a.jsonl")
    disk.room = 0
    lines.write(b"a\n")
    lines.close()
    assert lines.lost == 1


@given(st.lists(st.tuples(st.integers(0, 30), st.binary(max_size=9).map(lambda b: b.replace(b"\n", b"") + b"\n"))))
def test_whatever_the_room_lines_are_whole_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, bytes]]
) -> None:
    path = tmp_path_factory.mktemp("k") / "a.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_lines, "FileIO", SmallDisk)
        lines = KeptLines(path)
        for room, line in steps:
            SmallDisk.room = room
            lines.write(line)
        SmallDisk.room = 1 << 20
        lines.close()
    assert (path.read_bytes() if path.exists() else b"") == b"".join(line for _, line in steps)
    assert lines.lost == 0

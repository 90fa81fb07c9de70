"""Which errors say that a resource has run out, and of what."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from vcppo.common.files import room
from vcppo.common.files.room import Room, Shortage, exhausted, resource_named, room_of, shortage_of


@pytest.mark.parametrize(
    ("number", "resource"),
    [
        (errno.ENOSPC, "disk space"),
        (errno.EDQUOT, "disk quota"),
        (errno.EFBIG, "file size"),
        (errno.EMFILE, "open files"),
        (errno.ENFILE, "open files of the machine"),
        (errno.ENOMEM, "memory"),
    ],
)
def test_error_numbers(number: int, resource: str, tmp_path: Path) -> None:
    found = shortage_of(OSError(number, os.strerror(number)), tmp_path)
    assert found is not None
    assert found.resource == resource
    assert found.folder == (tmp_path if resource in room.ON_DISK else None)
    assert found.remedy in str(found)


def test_no_more_processes_only_where_one_was_started() -> None:
    error = BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    assert shortage_of(error) is None
    assert shortage_of(error, starting=True) == Shortage("processes")


@pytest.mark.parametrize(
    "error", [FileNotFoundError(errno.ENOENT, "no"), PermissionError(errno.EACCES, "no"), ValueError("disk"), OSError()]
)
def test_other_errors_are_none(error: Exception) -> None:
    assert shortage_of(error) is None


def test_an_error_that_comes_from_one(tmp_path: Path) -> None:
    error = RuntimeError("while closing")
    error.__context__ = OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "weights.pt"))
    assert shortage_of(error, Path("/elsewhere")) == Shortage("disk space", tmp_path)


@pytest.mark.parametrize(
    ("text", "resource"),
    [
        ("I/O error: No space left on device (os error 28)", "disk space"),
        ("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/3", "disk space"),
        ("[enforce fail at inline_container.cc:672] . unexpected pos 8512 vs 8406", "disk space"),
        ("write(): fd 11 failed with File too large", "file size"),
        ("Short write while writing to the AOF file: (nwritten=1334, expected=8990)", "disk space"),
        ("Can't recover from AOF write error when the AOF fsync policy is 'always'. Exiting...", "disk space"),
        ("can't start new thread", "processes"),
        ("a step of 12 seconds", None),
    ],
)
def test_texts_of_libraries(text: str, resource: str | None) -> None:
    assert resource_named(text) == resource
    found = shortage_of(RuntimeError(text))
    assert (None if found is None else found.resource) == resource


def test_no_more_inodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(room, "room_of", lambda _: Room(free=2**30, inodes=0, device=1))
    found = shortage_of(OSError(errno.ENOSPC, "No space left on device"), tmp_path)
    assert found == Shortage("inodes", tmp_path)
    assert found.as_fields()["free_inodes"] == 0


def test_room_of_a_folder_that_is_still_to_be_made(tmp_path: Path) -> None:
    here, there = room_of(tmp_path), room_of(tmp_path / "a" / "b")
    assert here is not None
    assert there is not None
    assert here.device == there.device == tmp_path.stat().st_dev
    assert there.free > 0


def test_the_end_of_a_process_names_it(tmp_path: Path) -> None:
    error = exhausted(Shortage("disk space", tmp_path), "the recording")
    assert error.exit_code == 75
    assert str(tmp_path) in str(error)

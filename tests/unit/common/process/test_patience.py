"""Waiting for room: tried again until it works, said, and ended by a request to stop."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vcppo.common.errors import ResourceExhausted
from vcppo.common.process import patience
from vcppo.common.process.patience import patiently


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_SECONDS", 0.001)


class Disk:
    def __init__(self, failures: int, number: int = errno.ENOSPC) -> None:
        self.failures, self.number, self.tries = failures, number, 0

    def write(self) -> str:
        self.tries += 1
        if self.tries <= self.failures:
            raise OSError(self.number, "no room")
        return "written"


def test_it_goes_on_by_itself_and_says_so_once(tmp_path: Path) -> None:
    disk = Disk(5)
    with capture_logs() as lines:
        assert patiently(disk.write, "the log", tmp_path) == "written"
    assert [line["event"] for line in lines] == ["waiting_for_room", "room_again"]
    assert (lines[0]["resource"], lines[0]["folder"], lines[0]["what"]) == ("disk space", str(tmp_path), "the log")


def test_nothing_is_said_where_there_is_room(tmp_path: Path) -> None:
    with capture_logs() as lines:
        patiently(Disk(0).write, "the log", tmp_path)
    assert lines == []


def test_another_error_is_raised_at_once(tmp_path: Path) -> None:
    disk = Disk(5, errno.EROFS)
    with pytest.raises(OSError, match="no room"):
        patiently(disk.write, "the log", tmp_path)
    assert disk.tries == 1


def test_a_request_to_stop_ends_the_wait(tmp_path: Path) -> None:
    disk = Disk(1000)
    with pytest.raises(ResourceExhausted, match="disk space") as caught:
        patiently(disk.write, "the log", tmp_path, stopping=lambda: disk.tries >= 3)
    assert disk.tries == 3
    assert caught.value.exit_code == 75

"""The sender's memory: order, limits, restarts and broken files. No sockets."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from vcppo.common.transport import Spool


def drained(spool: Spool) -> list[tuple[str, bytes]]:
    messages = []
    while (message := spool.take()) is not None:
        messages.append(message)
    return messages


def test_messages_come_in_order_and_stay_until_removed(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1000, 1000)
    for name in "abc":
        spool.add(name, name.encode() * 3)
    spool.add("a", b"again")
    assert drained(spool) == [("a", b"aaa"), ("b", b"bbb"), ("c", b"ccc")]
    assert len(spool) == 3
    assert spool.remove("b")
    assert not spool.remove("b")
    spool.put_back(["a", "b"])
    assert drained(spool) == [("a", b"aaa")]
    spool.restart()
    assert [name for name, _ in drained(spool)] == ["a", "c"]


def test_memory_overflows_to_disk_in_order_and_comes_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10, 1000)
    for number in range(5):
        spool.add(str(number), bytes([number]) * 4)
    assert len(list(tmp_path.glob("*.msg"))) == 3
    assert not spool.is_full
    assert drained(spool) == [(str(n), bytes([n]) * 4) for n in range(5)]
    for number in range(5):
        spool.remove(str(number))
    assert list(tmp_path.iterdir()) == []
    assert spool.wait_until_empty(0)


def test_full_when_the_disk_quota_is_used_up_and_again_not(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 10, 8)
    for number in range(5):
        spool.add(str(number), bytes(4))
    assert spool.is_full  # 8 bytes on disk, 12 in memory: nothing was lost
    assert len(spool) == 5
    spool.remove("0")
    assert not spool.is_full


def test_a_disk_that_refuses_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = Spool(tmp_path, 5, 1000)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", refuse)
    spool.add("a", bytes(8))
    assert spool.is_full
    assert drained(spool) == [("a", bytes(8))]


def test_the_next_process_takes_over_what_was_kept(tmp_path: Path) -> None:
    first = Spool(tmp_path, 1000, 1000)
    for name in ("z", "é", "a"):
        first.add(name, name.encode() * 2)
    first.persist()
    (tmp_path / ".000000000009.msg.1.partial").write_bytes(b"half")
    (tmp_path / "000000000008.msg").write_bytes(b"\xff\xff\xff\xffnonsense")
    (tmp_path / "000000000007.msg").write_bytes(b"")
    (tmp_path / "000000000006.msg").mkdir()
    (tmp_path / "000000000005.msg").symlink_to(tmp_path / "nowhere")
    second = Spool(tmp_path, 1000, 1000)
    assert drained(second) == [("z", b"zz"), ("é", "éé".encode()), ("a", b"aa")]
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [*[".bad"] * 4, *[".msg"] * 3]
    second.add("new", b"n")
    second.persist()
    assert [name for name, _ in drained(Spool(tmp_path, 1000, 1000))] == ["z", "é", "a", "new"]


def test_a_file_that_vanished_is_skipped(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 0, 1000)
    spool.add("a", b"1")
    spool.add("b", b"2")
    sorted(tmp_path.glob("*.msg"))[0].unlink()
    assert drained(spool) == [("b", b"2")]
    assert len(spool) == 1


def test_a_full_disk_is_said_once_and_the_spool_goes_on_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path, 5, 1000)

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with capture_logs() as lines:
        with monkeypatch.context() as full:
            full.setattr(Path, "open", refuse)
            for number in range(3):
                spool.add(str(number), bytes(8))
        assert spool.is_full
        spool.add("3", bytes(8))
        spool.remove("0")
        spool.remove("1")
        spool.remove("2")
    assert not spool.is_full
    assert [line["event"] for line in lines] == ["waiting_for_room", "room_again"]
    assert lines[0]["folder"] == str(tmp_path)
    assert drained(spool) == [("3", bytes(8))]


def test_two_processes_on_one_folder_overwrite_nothing_of_each_other(tmp_path: Path) -> None:
    """One that was frozen and replaced, and still ends in order."""
    old, new = Spool(tmp_path, 1000, 1000), Spool(tmp_path, 1000, 1000)
    old.add("a", b"old")
    new.add("b", b"new")
    new.persist()
    old.persist()
    old.remove("a")
    assert drained(new) == [("b", b"new")]

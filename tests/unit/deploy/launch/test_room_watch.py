"""How long room on disk will last, at the rate of the last hour."""

from __future__ import annotations

from pathlib import Path

from structlog.testing import capture_logs

from vcppo.common.files.room import Room
from vcppo.deploy.launch.room_watch import LOOK_SECONDS, REPORT_SECONDS, RoomWatch

GIB = 2**30


class Disk:
    """Fills by so many GiB an hour."""

    def __init__(self, free_gib: float, gib_per_hour: float, inodes: int | None = None) -> None:
        self.free, self.rate, self.inodes, self.now, self.looks = free_gib * GIB, gib_per_hour, inodes, 0.0, 0

    def look(self, folder: Path) -> Room | None:
        self.looks += 1
        return None if folder.name == "gone" else Room(int(self.free), self.inodes, device=1)

    def pass_minute(self) -> None:
        self.now += LOOK_SECONDS
        self.free -= self.rate * GIB * LOOK_SECONDS / 3600

    def watch(self, warn_hours: float = 2.0) -> RoomWatch:
        return RoomWatch([Path("run"), Path("tmp"), Path("gone")], warn_hours, self.look, lambda: self.now)


def warnings_of(disk: Disk, minutes: int, warn_hours: float = 2.0) -> list[dict[str, object]]:
    watch = disk.watch(warn_hours)
    with capture_logs() as lines:
        for _ in range(minutes):
            watch.tick()
            watch.tick()  # within the same minute: no look
            disk.pass_minute()
    return list(lines)


def test_hours_left_are_said_in_time_and_now_and_then() -> None:
    lines = warnings_of(Disk(free_gib=10, gib_per_hour=4), minutes=60)  # 2.5 h at first, 2 h after half an hour
    assert {line["event"] for line in lines} == {"room_running_out"}
    assert lines[0]["folder"] == "run"
    assert lines[0]["resource"] == "disk space"
    assert 1.9 < float(str(lines[0]["hours_left"])) < 2.0
    assert len(lines) == 2  # the second REPORT_SECONDS later
    assert REPORT_SECONDS == 15 * LOOK_SECONDS


def test_what_lasts_is_not_said() -> None:
    assert warnings_of(Disk(free_gib=100, gib_per_hour=4), minutes=60) == []
    assert warnings_of(Disk(free_gib=1, gib_per_hour=0), minutes=60) == []
    assert warnings_of(Disk(free_gib=1, gib_per_hour=-4), minutes=60) == []


def test_zero_hours_never_look() -> None:
    disk = Disk(free_gib=0.1, gib_per_hour=4)
    assert warnings_of(disk, minutes=5, warn_hours=0) == []
    assert disk.looks == 0


def test_inodes_run_out_too() -> None:
    disk = Disk(free_gib=100, gib_per_hour=0, inodes=1000)
    watch = disk.watch()
    with capture_logs() as lines:
        for _ in range(5):
            watch.tick()
            disk.inodes = (disk.inodes or 0) - 100
            disk.pass_minute()
    assert [line["resource"] for line in lines] == ["inodes"]

"""What a tracker is told, and that no run waits for it. The tracker here is one of ours: a list that can be away."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from vcppo.common.files.json_file import read_json_object
from vcppo.common.run_folder import RunFolder
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.common.trackers import feed
from vcppo.common.trackers.feed import Feed, Source, Trackers
from vcppo.common.trackers.position import Axis
from vcppo.common.trackers.tracker import Table, TrackedRun

SECONDS = 20.0


@dataclass
class Listing:
    """A tracker that keeps what it is told, by run. `fails`: how many calls still raise. `gate`: shut, calls hang."""

    name: str = "listing"
    told: dict[str, list[tuple[int, dict[str, float | int]]]] = field(default_factory=dict)
    opened: list[str] = field(default_factory=list)
    fails: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    run: str = ""

    def __post_init__(self) -> None:
        self.gate.set()

    def _answer(self) -> None:
        self.gate.wait(SECONDS)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("no route to the tracker")

    def open(self, run: TrackedRun) -> None:
        self._answer()
        self.run = run.id
        self.opened.append(run.id)

    def log(self, step: int, values: Mapping[str, float | int], wall_time: float) -> None:
        self._answer()
        self.told.setdefault(self.run, []).append((step, dict(values)))

    def log_table(self, step: int, table: Table) -> None:
        self._answer()

    def close(self) -> None:
        self._answer()

    @property
    def of_all(self) -> list[tuple[int, dict[str, float | int]]]:
        return [line for lines in self.told.values() for line in lines]


@contextmanager
def writer(
    folder: Path, tracker: Listing, axis: Axis = "steps_of_run", service: str = "learner"
) -> Iterator[MetricsWriter]:
    """One process of a service."""
    paths = RunFolder(folder)
    source = Source(paths.metrics_file(service), axis, paths.tracker_position(service, tracker.name))
    run = TrackedRun("", "r", service, folder)
    made = MetricsWriter(folder, service, "r", [Trackers([Feed(tracker, run, source, first_pause=0.05)])])
    yield made
    made.close()


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)


def test_each_step_is_told_once_over_a_restart(tmp_path: Path) -> None:
    tracker = Listing()
    for steps in ((1, 2, 3), (3, 4)):  # step 3 was after the last checkpoint: it is done again
        with writer(tmp_path, tracker) as made:
            for step in steps:
                made.write(step, {"a": step, "b": None if step == 2 else 0.5, "stage": "rl", "curve": [1.0]})
    (lines,) = tracker.told.values()
    assert lines == [(1, {"a": 1, "b": 0.5}), (2, {"a": 2}), (3, {"a": 3, "b": 0.5}), (4, {"a": 4, "b": 0.5})]
    assert len(tracker.opened) == 2
    assert len(set(tracker.opened)) == 1


def test_numbers_of_another_kind_may_begin_at_a_lower_step(tmp_path: Path) -> None:
    """Value pretraining counts trajectories, then steps; RL begins at 1."""
    tracker = Listing()
    with writer(tmp_path, tracker) as made:
        made.write(4096, {"vp/recorded": 4096})
        made.write(0, {"vp/train_loss": 0.5})
        made.write(1, {"reward/mean": 0.25})
    assert tracker.of_all == [(4096, {"vp/recorded": 4096}), (0, {"vp/train_loss": 0.5}), (1, {"reward/mean": 0.25})]


def test_what_was_written_while_it_was_away_comes_later_and_is_said_once(tmp_path: Path) -> None:
    tracker = Listing(fails=4)
    with capture_logs() as logs, writer(tmp_path, tracker) as made:
        for step in (1, 2, 3):
            made.write(step, {"a": step})
        wait_until(lambda: tracker.fails < 4)
        while tracker.fails:  # each new line wakes it
            made.write(step := step + 1, {"a": step})
            time.sleep(0.05)
    assert [line for line, _ in tracker.of_all] == list(range(1, step + 1))
    assert [entry["event"] for entry in logs].count("tracker_away") == 1
    (away,) = [entry for entry in logs if entry["event"] == "tracker_away"]
    assert (away["tracker"], away["error"]) == ("listing", "no route to the tracker")
    assert "tracker_back" in [entry["event"] for entry in logs]


def test_a_tracker_that_hangs_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "CLOSE_SECONDS", 0.2)
    tracker = Listing()
    tracker.gate.clear()
    began = time.monotonic()
    with capture_logs() as logs, writer(tmp_path, tracker) as made:
        for step in range(100):
            made.write(step, {"a": step})
        assert time.monotonic() - began < 2
    assert time.monotonic() - began < 4
    assert [(entry["event"], entry["tracker"]) for entry in logs] == [("tracker_late", "listing")]
    tracker.gate.set()


def test_what_it_missed_is_told_by_the_next_process(tmp_path: Path) -> None:
    away, there = Listing(fails=1000), Listing()
    with capture_logs() as logs, writer(tmp_path, away) as made:
        made.write(1, {"a": 1})
    assert [entry["event"] for entry in logs if entry["log_level"] == "warning"] == ["tracker_away"]
    with writer(tmp_path, there) as made:
        made.write(2, {"a": 2})
    assert there.of_all == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_feed_that_has_ended_holds_nobody_off(tmp_path: Path) -> None:
    """Even while somebody still has it."""
    tracker, paths = Listing(), RunFolder(tmp_path)
    source = Source(paths.metrics_file("learner"), "steps_of_run", paths.tracker_position("learner", "listing"))
    feeds = []
    for step in (1, 2):
        MetricsWriter(tmp_path, "learner", "r").write(step, {"a": step})
        feeds.append(Feed(tracker, TrackedRun("", "r", "learner", tmp_path), source))
        Trackers(feeds[-1:]).close()
    assert tracker.of_all == [(1, {"a": 1}), (2, {"a": 2})]


def test_a_line_without_its_end_waits(tmp_path: Path) -> None:
    tracker, file = Listing(), RunFolder(tmp_path).metrics_file("learner")
    line = json.dumps({"time": "2026-01-02T03:04:05.678Z", "step": 1, "a": 1}).encode()
    with writer(tmp_path, tracker):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"no json\n" + line)
    assert tracker.of_all == []
    file.write_bytes(b"no json\n" + line + b"\n")
    with writer(tmp_path, tracker):
        pass
    assert tracker.of_all == [(1, {"a": 1})]


def test_a_training_that_begins_again_is_a_run_of_its_own(tmp_path: Path) -> None:
    tracker = Listing()
    for _ in range(2):
        with writer(tmp_path, tracker, "steps_of_process") as made:
            for step in (1, 2):
                made.write(step, {"sft/loss": step})
    first, second = tracker.told.values()
    assert first == second == [(1, {"sft/loss": 1}), (2, {"sft/loss": 2})]


def test_a_metrics_file_that_was_moved_away_is_a_run_of_its_own(tmp_path: Path) -> None:
    tracker = Listing()
    with writer(tmp_path, tracker) as made:
        for step in (1, 2):
            made.write(step, {"a": step})
    RunFolder(tmp_path).metrics_file("learner").unlink()
    with writer(tmp_path, tracker) as made:
        made.write(1, {"a": 7})
    assert list(tracker.told.values()) == [[(1, {"a": 1}), (2, {"a": 2})], [(1, {"a": 7})]]


def test_a_service_that_counts_anew_goes_on_by_time(tmp_path: Path) -> None:
    tracker, file = Listing(), RunFolder(tmp_path).metrics_file("buffer")
    file.parent.mkdir()
    with file.open("w") as lines:  # it was started again in between
        for second, step in ((5, 60), (15, 70), (25, 3)):
            stamp = f"2026-01-02T03:04:{second:02d}.000Z"
            lines.write(json.dumps({"time": stamp, "step": step, "buffer/accepted": second}) + "\n")
    with writer(tmp_path, tracker, "seconds", "buffer"):
        pass
    assert tracker.of_all == [
        (0, {"buffer/accepted": 5}), (10, {"buffer/accepted": 15}), (20, {"buffer/accepted": 25})
    ]  # fmt: skip


def test_two_buffers_with_one_file_are_told_once(tmp_path: Path) -> None:
    one, other = Listing(), Listing()
    with writer(tmp_path, one, "seconds", "buffer") as first:
        first.write(1, {"a": 1})
        wait_until(lambda: len(one.of_all) == 1)
        with writer(tmp_path, other, "seconds", "buffer") as second:
            second.write(1, {"b": 2})
    assert [values for _, values in one.of_all] == [{"a": 1}, {"b": 2}]
    assert other.of_all == []


def test_a_process_killed_while_it_tells_costs_a_line_and_doubles_none(tmp_path: Path) -> None:
    """The position is on disk before the tracker is asked."""
    seen: dict[str, Any] = {}
    tracker = Listing()
    place = RunFolder(tmp_path).tracker_position("learner", "listing")
    tracker.log = lambda step, *_: seen.update(read_json_object(place, ""))  # type: ignore[method-assign]
    with writer(tmp_path, tracker) as made:
        made.write(12, {"a": 1})
    assert seen["steps"] == {"a": 12}
    assert seen["offset"] == RunFolder(tmp_path).metrics_file("learner").stat().st_size

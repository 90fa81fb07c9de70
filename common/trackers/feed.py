"""Tells a tracker what stands in a service's metrics file, in a thread of its own: no step ever waits for a tracker.

    metrics/<service>.jsonl ──▶ thread ──▶ tracker                       one thread a tracker
    samples/step-*.parquet  ──▶   │
                                  ▼
    metrics/trackers/<service>.<tracker>.json                            how far it has been told

While a tracker is away, its lines wait in the file. They are told when it is back, or by the process that is started
next. So a tracker that is named in the middle of a run gets the run from its beginning.

The position is written before a line is handed over: a process that is killed between the two costs that line at the
tracker. The other way round it would be there twice.
"""

from __future__ import annotations

import fcntl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path

import structlog

from vcppo.common.files.json_lines import lines_from
from vcppo.common.text.yaml_text import one_line
from vcppo.common.trackers.position import Axis, Position, Told, read_position
from vcppo.common.trackers.sample_tables import SampleTables
from vcppo.common.trackers.tracker import TrackedRun, Tracker, new_id

log = structlog.get_logger(__name__)

CLOSE_SECONDS = 10.0
"""How long a process that ends waits for its trackers, all together."""
_LOOK_SECONDS = 5.0
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 300.0
_TABLE_TRIES = 3


@dataclass(frozen=True)
class Source:
    """What is told: the metrics file of a service and what its ``step`` is; `tables`: responses too."""

    lines: Path
    axis: Axis
    position: Path
    tables: SampleTables | None = None


class Feed:
    """One tracker's thread. It ends by itself only after `stop`.

    Args:
        run: what is tracked; its id is replaced by that of the position's file.
        first_pause: seconds after which a tracker that is away is tried again; doubles each time.
    """

    def __init__(
        self, tracker: Tracker, run: TrackedRun, source: Source, first_pause: float = _FIRST_PAUSE_SECONDS
    ) -> None:
        self.name = tracker.name
        self._tracker, self._run, self._source = tracker, run, source
        self._first_pause = self._pause = first_pause
        self._position: Position | None = None
        self._lock: FileIO | None = None
        self._is_open, self._table_tries = False, 0
        self._away_since: float | None = None
        self._try_at = 0.0
        self._wake, self._stopping = threading.Event(), False
        self._thread = threading.Thread(target=self._loop, name=f"tracker-{self.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """There is a new line. Returns at once."""
        self._wake.set()

    def stop(self) -> None:
        """Tell what is there, once, and end. Returns at once."""
        self._stopping = True
        self._wake.set()

    def join(self, seconds: float) -> None:
        """Wait for the end, at most so long; one that is late is left behind, and the log says so."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("tracker_late", tracker=self.name, waited=CLOSE_SECONDS, remedy=_REMEDY)

    def _loop(self) -> None:
        stopping = False
        while not stopping:
            self._wake.wait(_LOOK_SECONDS)
            self._wake.clear()
            stopping = self._stopping
            if stopping or time.monotonic() >= self._try_at:
                self._guarded(self._tell)
        if self._is_open:
            self._guarded(self._tracker.close)
        if self._lock is not None:
            self._lock.close()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001  (libraries of trackers raise anything, and no run ends by them)
            self._went_away(error)

    def _went_away(self, error: Exception) -> None:
        self._is_open = False
        self._try_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_SECONDS)
        if self._away_since is None:
            self._away_since = time.monotonic()
            text = one_line(error)[:300] or type(error).__name__
            log.warning("tracker_away", tracker=self.name, error=text, remedy=_REMEDY)

    def _is_back(self) -> None:
        self._pause, self._try_at = self._first_pause, 0.0
        if self._away_since is not None:
            log.info("tracker_back", tracker=self.name, away_seconds=round(time.monotonic() - self._away_since, 1))
            self._away_since = None

    def _tell(self) -> None:
        """All that is new. Raises what the tracker raises."""
        if not self._has_lock():
            return
        if self._position is None:
            self._position = read_position(self._source.position) or self._at_the_beginning()
        if self._source.lines.exists() and self._source.lines.stat().st_size < self._position.offset:
            self._begin_anew()  # the file is another one
        for line, end in lines_from(self._source.lines, self._position.offset):
            told = None if line is None else self._position.told_of(line, self._source.axis)
            if told is not None and told.begins:
                self._begin_anew()
            self._tell_line(told, end)
        for step, path in self._new_tables():
            self._tell_table(step, path)

    def _tell_line(self, told: Told | None, end: int) -> None:
        assert self._position is not None
        if told is None:
            self._position = self._position.after(None, end)
            return
        self._open()
        before, self._position = self._position, self._position.after(told, end)
        try:
            self._position.write(self._source.position)
            self._tracker.log(told.step, told.values, told.wall_time)
        except Exception:
            self._position = before
            before.write(self._source.position)
            raise
        self._is_back()

    def _new_tables(self) -> Iterator[tuple[int, Path]]:
        assert self._position is not None
        if self._source.tables is not None:
            yield from self._source.tables.after(self._position.samples)

    def _tell_table(self, step: int, path: Path) -> None:
        """Tried a few times: a tracker may take numbers and no tables."""
        assert self._position is not None and self._source.tables is not None
        table = self._source.tables.read(path)
        self._open()
        before = self._position
        self._position = replace(before, samples=step)
        self._position.write(self._source.position)
        if table is None:
            return
        try:
            self._tracker.log_table(step, table)
        except Exception as error:
            self._table_tries += 1
            if self._table_tries < _TABLE_TRIES:
                self._position = before
                before.write(self._source.position)
                raise
            log.warning("tracker_refused_table", tracker=self.name, step=step, error=one_line(error)[:300])
        self._table_tries = 0
        self._is_back()

    def _open(self) -> None:
        assert self._position is not None
        if not self._is_open:
            self._run = replace(self._run, id=self._position.id)
            self._tracker.open(self._run)
            self._is_open = True
            log.info("tracker_opened", tracker=self.name, tracker_run=self._run.id)

    def _at_the_beginning(self) -> Position:
        return Position(new_id(self._run.run, self._run.service))

    def _begin_anew(self) -> None:
        """Another run of the tracker, for what follows."""
        assert self._position is not None
        offset = min(self._position.offset, self._source.lines.stat().st_size)
        is_other_file = offset < self._position.offset
        if self._is_open:
            self._is_open = False
            self._tracker.close()
        self._position = replace(self._at_the_beginning(), offset=0 if is_other_file else offset)

    def _has_lock(self) -> bool:
        """Several buffers of a host write one file: one of them tells it."""
        if self._lock is None:
            path = self._source.position.with_suffix(".lock")
            path.parent.mkdir(parents=True, exist_ok=True)
            file = FileIO(path, "a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._lock = file
        return True


class Trackers:
    """All of a service, as one sink of its metrics."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds

    def write(self, *_: object) -> None:
        """A line was written; its numbers are read from the file."""
        for feed in self._feeds:
            feed.wake()

    def close(self) -> None:
        """Tell the rest. Returns after `CLOSE_SECONDS` at the latest."""
        for feed in self._feeds:
            feed.stop()
        deadline = time.monotonic() + CLOSE_SECONDS
        for feed in self._feeds:
            feed.join(max(0.0, deadline - time.monotonic()))


_REMEDY = "the run goes on; what the tracker misses is in metrics/, and is sent when it answers or at the next start"

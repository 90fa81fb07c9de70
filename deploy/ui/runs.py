"""The runs under a folder, as the pages ask for them: found by their config, read as they grow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from vcppo.common.errors import VcppoError
from vcppo.common.files.json_lines import read_json_lines
from vcppo.common.run_folder import RunFolder
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.run.run_data import RunData

_DEPTHS = ("config.yaml", "*/config.yaml", "*/*/config.yaml")
_ALIVE_SECONDS = 90.0


class UnknownRun(VcppoError):
    """No such run under the folder."""


class RunLine(NamedTuple):
    """One run of the list; `problem` says why it can't be read, and then nothing else is known."""

    key: str
    state: str = ""
    step: int = 0
    num_steps: int = 0
    accuracy: float | None = None
    explained_variance: float | None = None
    started: str = ""
    seen: str = ""
    problem: str = ""


class Runs:
    """Runs by key: the path below the folder, or the folder's name where it is itself a run.

    Safe for threads: each run is read by one at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._data: dict[str, RunData] = {}

    def keys(self) -> list[str]:
        """Of all runs there are now, the newest config first."""
        found = {path.parent for depth in _DEPTHS for path in self.root.glob(depth)}
        by_age = sorted(found, key=lambda folder: -_modified(folder / "config.yaml"))
        return [self._key(folder) for folder in by_age]

    def folder(self, key: str) -> RunFolder:
        """Raises UnknownRun. A key is looked up and never joined to a path, so it leads nowhere else."""
        if key not in self.keys():
            raise UnknownRun(f"{key!r}: no such run under {self.root}: the first page lists those there are")
        return RunFolder(self.root if key == self._key(self.root) else self.root / key)

    def data(self, key: str) -> RunData:
        """What the run has written so far. Raises UnknownRun, or VcppoError when its config can't be read."""
        folder = self.folder(key)
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._data:
                self._data[key] = RunData.load(folder)
            return self._data[key].refresh()

    def lines(self) -> Iterator[RunLine]:
        """Of every run."""
        for key in self.keys():
            try:
                yield self._line(key)
            except (VcppoError, OSError) as error:
                yield RunLine(key, problem=one_line(error))

    def line(self, key: str) -> RunLine:
        """Of one. Raises as `data`."""
        return self._line(key)

    def _line(self, key: str) -> RunLine:
        data, folder = self.data(key), self.folder(key)
        last = data.rl[-1] if data.rl else {}
        seen = last_sign(folder)
        return RunLine(
            key=key,
            state=_state(data, seen),
            step=int(last.get("step", 0)),
            num_steps=data.config.rl.num_steps,
            accuracy=last.get("reward/accuracy"),
            explained_variance=last.get("explained_variance/token"),
            started=_as_time(_modified(folder.config)),
            seen=_as_time(seen),
        )

    def _key(self, folder: Path) -> str:
        return self.root.resolve().name if folder == self.root else folder.relative_to(self.root).as_posix()


class Process(NamedTuple):
    """A process of a run: how often it was started, and when it last wrote a log line."""

    name: str
    starts: int
    seen: str


def processes(folder: RunFolder) -> list[Process]:
    """All that have written a log line."""
    lines = read_json_lines(folder.log_file("launcher"))
    starts = Counter(str(row.get("process")) for row in lines if row.get("event") == "process_started")
    return [
        Process(path.stem, starts[path.stem], _as_time(_modified(path))) for path in sorted(folder.logs.glob("*.jsonl"))
    ]


def last_sign(folder: RunFolder) -> float:
    """When a metrics file or a log was last written to, seconds since the epoch; 0: never."""
    files = [*folder.metrics.glob("*.jsonl"), *folder.logs.glob("*.jsonl")]
    return max(map(_modified, files), default=0.0)


def signature(folder: RunFolder) -> tuple[int, int]:
    """Changes whenever there is something new to draw."""
    return sum(map(_size, folder.metrics.glob("*.jsonl"))), len(list(folder.samples.glob("step-*.parquet")))


def _state(data: RunData, seen: float) -> str:
    if data.finished:
        return "finished"
    if datetime.now(UTC).timestamp() - seen > _ALIVE_SECONDS:
        return "stopped" if seen else "not begun"
    return "training" if data.rl else "value pretraining" if data.num_recorded else "starting"


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # gone since it was listed
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _as_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC") if seconds else ""

"""The runs under a folder, as the pages ask for them: found by their config, read as they grow."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from vcppo.common.config import load_config
from vcppo.common.errors import VcppoError
from vcppo.common.files.json_lines import JsonLinesTail, Row, read_json_lines
from vcppo.common.run_folder import RunFolder
from vcppo.common.text.yaml_text import one_line
from vcppo.deploy.run.measured_accuracy import HeldOut, newest
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.ui.weight_updates import Failure, Update, WeightUpdates, from_log, from_metrics

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
    held_out: HeldOut | None = None
    explained_variance: float | None = None
    started: str = ""
    seen: str = ""
    problem: str = ""


class _Read:
    """What was read of one run so far; only what was added is read at the next look."""

    def __init__(self, folder: RunFolder) -> None:
        self.lock = threading.Lock()
        self.data = RunData(folder, load_config(folder.config))
        self.cold_start: list[Row] = []
        self._updates: list[Update] = []
        self._failures: list[Failure] = []
        self._log = JsonLinesTail(folder.log_file("learner"))
        self._sft = JsonLinesTail(folder.metrics_file("sft"))

    def refresh(self) -> None:
        self.data.refresh()
        found = from_log(self._log.read())
        self._updates += found.updates
        self._failures += found.failures
        self.cold_start += [row for row in self._sft.read() if isinstance(row.get("step"), int)]

    @property
    def updates(self) -> WeightUpdates:
        """By the log, and by the metrics where that has none."""
        return WeightUpdates(self._updates, self._failures) if self._updates else from_metrics(self.data.rl)


class Runs:
    """Runs by key: the path below the folder, or the folder's name where it is itself a run.

    Safe for threads: each run is read by one at a time.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._lock = threading.Lock()
        self._read: dict[str, _Read] = {}

    def keys(self) -> list[str]:
        """Of all runs there are now, the newest config first."""
        found = {path.parent for depth in _DEPTHS for path in self.root.glob(depth)}
        # A folder inside a run has settings too, such as those of `vcppo explainable`, and is none.
        runs = [folder for folder in found if not found.intersection(folder.parents)]
        by_age = sorted(runs, key=lambda folder: -_modified(folder / "config.yaml"))
        return [self._key(folder) for folder in by_age]

    def folder(self, key: str) -> RunFolder:
        """Raises UnknownRun. A key is looked up and never joined to a path, so it leads nowhere else."""
        if key not in self.keys():
            raise UnknownRun(f"{key!r}: no such run under {self.root}: the first page lists those there are")
        return RunFolder(self.root if key == self._key(self.root) else self.root / key)

    def data(self, key: str) -> RunData:
        """What the run has written so far. Raises UnknownRun, or VcppoError when its config can't be read."""
        return self._refreshed(key).data

    def updates(self, key: str) -> WeightUpdates:
        """Its weight updates so far. Raises as `data`."""
        return self._refreshed(key).updates

    def cold_start(self, key: str) -> list[Row]:
        """Rows of its cold start so far, where it had one of its own. Raises as `data`."""
        return self._refreshed(key).cold_start

    def _refreshed(self, key: str) -> _Read:
        folder = self.folder(key)
        with self._lock:
            if key not in self._read:
                self._read[key] = _Read(folder)
            found = self._read[key]
        with found.lock:
            found.refresh()
        return found

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
            held_out=newest(data.evaluations),
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
    if data.rl or data.num_recorded:
        return "training" if data.rl else "value pretraining"
    return "cold start" if data.folder.metrics_file("sft").exists() else "starting"


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

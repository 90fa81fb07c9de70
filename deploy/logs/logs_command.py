"""`vcppo logs`: the log lines of a run, or of standard input, filtered and made readable."""

from __future__ import annotations

import heapq
import re
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vcppo.common.files.json_lines import newest_json_lines
from vcppo.common.records.ids import is_process_of, prompt_named_by
from vcppo.deploy.logs.log_lines import LEVELS, Record, level_of, parse_line
from vcppo.deploy.run.run_data import JsonLinesTail

FOLLOW_SECONDS = 0.25
_COMPOSE_PREFIX = re.compile(r"^(?P<service>[\w.-]+)\s+\|\s?")


@dataclass(frozen=True)
class LogFilter:
    """Which lines are wanted; None wants all.

    Attributes:
        service: a process (``generator-0``) or kind of process (``generator``).
        level: lowest level.
        trajectory: a trajectory id or prompt id; lines about the prompt or any rollout of it match.
        policy_version: lines bound to this version.
    """

    service: str | None = None
    level: str | None = None
    trajectory: str | None = None
    policy_version: int | None = None

    def wants(self, record: Record) -> bool:
        """Whether the line meets every condition."""
        service = str(record.get("service", ""))
        if self.service is not None and not is_process_of(service, self.service):
            return False
        if self.level is not None and level_of(record) < LEVELS[self.level]:
            return False
        if self.policy_version is not None and record.get("policy_version") != self.policy_version:
            return False
        return self.trajectory is None or self._about(record, prompt_named_by(self.trajectory))

    @staticmethod
    def _about(record: Record, prompt_id: str) -> bool:
        ids: list[object] = []
        for name in ("trajectory_id", "prompt_id", "trajectory_ids", "prompt_ids"):
            value = record.get(name)
            ids += value if isinstance(value, list) else [value]
        return any(prompt_named_by(str(each)) == prompt_id for each in ids if each is not None)


def from_text(lines: Iterable[str]) -> Iterator[Record]:
    """Records of lines as piped in: JSON lines, `docker compose logs` output, or any text."""
    for line in lines:
        text = line.rstrip("\n")
        prefix = _COMPOSE_PREFIX.match(text)
        service = prefix["service"] if prefix else ""
        if text.strip():
            yield parse_line(text[prefix.end() :] if prefix else text, service, "")


class Newest(NamedTuple):
    """Records of all processes of a run by time, and whether they are all there are."""

    records: list[Record]
    is_all: bool


def newest_from_folder(folder: Path, most_bytes: int) -> Newest:
    """The newest lines of a run, `most_bytes` in all; what small files leave of their share goes to larger ones."""
    paths = sorted(folder.glob("*.jsonl"), key=_size)
    found: list[list[Record]] = []
    is_all, left = True, most_bytes
    for number, path in enumerate(paths):
        share = left // (len(paths) - number)
        rows, is_whole = newest_json_lines(path, share)
        left -= min(share, _size(path))
        is_all = is_all and is_whole
        found.append(rows)
    return Newest(list(_by_time(found)), is_all)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _by_time(files: Iterable[list[Record]]) -> Iterator[Record]:
    """Within a file the order written is kept; files are merged by time."""
    return heapq.merge(*files, key=lambda record: str(record.get("time", "")))


def from_folder(folder: Path, follow: bool) -> Iterator[Record]:
    """Records of all processes of a run by time; with `follow`, then those that come, until interrupted."""
    tails: dict[Path, JsonLinesTail] = {}

    def read() -> Iterator[Record]:
        for path in sorted(folder.glob("*.jsonl")):
            tails.setdefault(path, JsonLinesTail(path))
        return _by_time(tail.read() for tail in tails.values())

    yield from read()
    never = threading.Event()
    while follow:
        never.wait(FOLLOW_SECONDS)  # files have no portable way to wait for growth
        yield from read()

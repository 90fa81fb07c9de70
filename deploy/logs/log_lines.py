"""A child's output, line by line: kept as JSON lines in the run folder, shown on the terminal."""

from __future__ import annotations

import re
import sys
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vcppo.common.files.json_lines import parse_object
from vcppo.common.files.kept_lines import KeptLines
from vcppo.common.files.room import shortage_of
from vcppo.common.records.ids import parse_process_name
from vcppo.common.telemetry.log import render_line, to_json
from vcppo.common.telemetry.log_render import plain
from vcppo.deploy.logs.foreign_lines import parse_foreign

Record = dict[str, Any]

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50}
PROCESS_COLOURS = {"learner": "35", "buffer": "34", "redis": "90", "sft": "33", "eval": "33"}
GENERATOR_COLOURS = ("36", "32", "96", "92", "94", "93")
JSON_LOGS = "logging.format=json"  # override for every child: rendering is ours
MAX_LINE_BYTES = 1 << 20
NUM_LAST_LINES = 12

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class LineSplitter:
    """Bytes in any pieces in, whole lines out. A line past 1 MiB is cut, so a broken child can't eat the memory."""

    def __init__(self) -> None:
        self._partial = b""

    def feed(self, chunk: bytes) -> Iterator[str]:
        """The lines that this piece completes, without their ends."""
        *lines, self._partial = (self._partial + chunk).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            yield line.decode("utf-8", "replace")

    def rest(self) -> Iterator[str]:
        """What is left at the end of the stream."""
        if self._partial:
            yield self._partial.decode("utf-8", "replace")
        self._partial = b""


def parse_line(line: str, service: str, run_id: str) -> Record:
    """The record of a JSON line; any other text becomes one, with the level its marks or words suggest."""
    if line.startswith("{"):
        record = parse_object(line)
        if record is not None and isinstance(record.get("event"), str):
            return plain(record)
    text = _ANSI.sub("", line).rstrip().rpartition("\r")[2]  # of a progress bar the last state
    foreign = parse_foreign(text)
    return {
        "time": timestamp(),
        "level": foreign.level,
        "service": service,
        "run_id": run_id,
        "event": foreign.event,
        **foreign.fields,
        "unstructured": True,
    }


def timestamp() -> str:
    """Now, as every log line has it: UTC, ISO, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def level_of(record: Record) -> int:
    """Numeric level; lines without a known one count as info."""
    return LEVELS.get(str(record.get("level", "info")).lower(), 20)


def prefix(process: str, width: int, colour: bool) -> str:
    """``generator-0 │ `` in the process's own colour."""
    role, which = parse_process_name(process)
    code = PROCESS_COLOURS.get(process) or PROCESS_COLOURS.get(role)
    if code is None:
        code = GENERATOR_COLOURS[int(which) % len(GENERATOR_COLOURS)] if which.isdigit() else "37"
    text = f"{process:<{width}} │ "
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


class Screen:
    """Writes lines of processes to the terminal: prefixed and coloured, or as plain JSON lines.

    Args:
        level: lowest level shown.
        as_json: write the JSON line itself (for another program to read).
    """

    def __init__(
        self, stream: IO[str] | None = None, *, level: str = "info", as_json: bool = False, width: int = 11
    ) -> None:
        self.stream = stream or sys.stdout
        self.colour = self.stream.isatty()
        self.level, self.as_json, self.width = LEVELS[level], as_json, width

    def show(self, process: str, record: Record) -> None:
        """Print the line, unless it is below the level or has no event."""
        if level_of(record) < self.level or not record.get("event"):
            return
        if self.as_json:
            text = to_json(record)
        else:
            line = {name: value for name, value in record.items() if name != "service"}
            text = prefix(process, self.width, self.colour) + render_line(line, colour=self.colour)
        self.stream.write(text + "\n")
        self.stream.flush()


class LogSink:
    """Where every line of every child goes: appended to ``<logs>/<name>.jsonl``, remembered for errors, shown.

    Whoever supervises processes must not end because of what it writes: a line that the disk refuses is kept in memory
    (`KeptLines`) until there is room, and still shown; a terminal that is gone is shown nothing more. The log says so.

    Args:
        folder: log folder of the run; made if missing.
        show: called with (process, record) for each line; None shows nothing.
    """

    def __init__(self, folder: Path, run_id: str, show: Callable[[str, Record], None] | None = None) -> None:
        self.folder, self.run_id, self.show = folder, run_id, show
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if shortage_of(error) is None:
                raise
        self._files: dict[str, KeptLines] = {}
        self._last: dict[str, deque[Record]] = {}
        self._waits: set[str] = set()  # processes whose lines wait for room

    def line(self, process: str, text: str) -> Record:
        """Take one line of output."""
        record = parse_line(text, process, self.run_id)
        if not record["event"]:
            return record
        self._last.setdefault(process, deque(maxlen=NUM_LAST_LINES)).append(record)
        self._show(process, record)
        self._keep(process, record)
        return record

    def last_lines(self, process: str) -> list[str]:
        """What explains the end of `process`: its ``fatal`` line if it wrote one, else its last lines."""
        records = list(self._last.get(process, ()))
        fatal = [r for r in records if r["event"] == "fatal"]
        if fatal:
            return [str(fatal[-1].get("error", "fatal"))]
        return [render_line({name: value for name, value in record.items() if name != "service"}) for record in records]

    @property
    def waits(self) -> bool:
        """Whether lines wait for room."""
        return bool(self._waits)

    def flush(self) -> None:
        """Try again what waits for room; called now and then while lines are rare."""
        for process in list(self._waits):
            self._judge(process, self._files[process].flush())

    def close(self) -> None:
        """Close all log files; a later line opens its file again."""
        for file in self._files.values():
            file.close()
        if lost := sum(file.lost for file in self._files.values()):
            self._show("launcher", self._own("log_lines_lost", level="error", lines=lost, folder=str(self.folder)))
        self._files.clear()
        self._waits.clear()

    def _keep(self, process: str, record: Record) -> None:
        if process not in self._files:
            self._files[process] = KeptLines(self.folder / f"{process}.jsonl")
        self._judge(process, self._files[process].write(to_json(record).encode() + b"\n"))

    def _judge(self, process: str, error: OSError | None) -> None:
        """Say when the first file begins to wait for room, and when the last one has it again."""
        before = bool(self._waits)
        (self._waits.discard if error is None else self._waits.add)(process)
        if error is not None and not before:
            shortage = shortage_of(error, self.folder)
            why = {"folder": str(self.folder), "error": str(error)} if shortage is None else shortage.as_fields()
            self._say("waiting_for_room", level="warning", what="log files", **why)
        elif before and not self._waits:
            self._say("room_again", what="log files", lost=sum(file.lost for file in self._files.values()))

    def _say(self, event: str, level: str = "info", **fields: object) -> None:
        record = self._own(event, level, **fields)
        self._show("launcher", record)
        self._keep("launcher", record)

    def _own(self, event: str, level: str = "info", **fields: object) -> Record:
        identity = {"time": timestamp(), "level": level, "service": "launcher", "run_id": self.run_id}
        return {**identity, "logger": "vcppo.deploy", "event": event, **fields}

    def _show(self, process: str, record: Record) -> None:
        if self.show is None:
            return
        try:
            self.show(process, record)
        except OSError as error:  # its disk is full, where it is a file: for the next line there may be room
            if shortage_of(error) is None:  # a closed pipe, a terminal that hung up
                self.show = None
                self._say("terminal_gone", level="warning", error=str(error), effect="the run goes on without")

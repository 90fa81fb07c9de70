"""What a sender keeps until it is acknowledged: in memory up to a limit, then on disk, in order.

One file per message, which is whole or not there. Files
survive the process; they are not fsynced, so a power cut may cost the newest (their prompts' leases then
expire and they are generated again). A killed process loses what was only in memory, to the same effect.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import structlog

from vcppo.common.files.room import shortage_of
from vcppo.common.files.whole_file import move, remove_partial_files, whole_file

log = structlog.get_logger(__name__)

_SUFFIX = ".msg"
_MAX_ID_BYTES = 1024


@dataclass(slots=True)
class _Entry:
    file: Path
    size: int  # bytes of the payload
    payload: bytes | None  # None: only in the file


class Spool:
    """Messages in order, each until `remove`. Safe to use from several threads."""

    def __init__(self, folder: Path, memory_bytes: int, disk_bytes: int) -> None:
        """Takes over what an earlier process left in `folder`, oldest first."""
        self._folder = folder
        # In the names of files, so that an earlier process that wakes up and spools here too overwrites none of ours.
        self._token = secrets.token_hex(4)
        self._memory_limit = memory_bytes
        self._disk_limit = disk_bytes
        self._memory_used = 0
        self._disk_used = 0
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._waiting: deque[str] = deque()
        self._changed = threading.Condition()
        self._room_is_short = False
        folder.mkdir(parents=True, exist_ok=True)
        self._sequence = 0
        self._load()

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._entries

    @property
    def is_full(self) -> bool:
        """Memory is over its limit, which it only gets when the disk takes no more."""
        return self._memory_used > self._memory_limit

    @property
    def has_waiting(self) -> bool:
        """Whether `take` would give one: some are kept that are not on the wire."""
        return bool(self._waiting)

    def add(self, message_id: str, payload: bytes) -> None:
        """Keep a message and put it in line; one that is kept already is left as it is. Never refuses."""
        with self._changed:
            if message_id in self._entries:
                return
            self._sequence += 1
            entry = _Entry(self._folder / f"{self._sequence:012d}-{self._token}{_SUFFIX}", len(payload), payload)
            self._memory_used += entry.size
            self._entries[message_id] = entry
            self._waiting.append(message_id)
            if self._memory_used > self._memory_limit and self._disk_used + entry.size <= self._disk_limit:
                self._move_to_disk(message_id, entry)

    def take(self) -> tuple[str, bytes] | None:
        """The next message in line (it stays kept), or None."""
        with self._changed:
            while self._waiting:
                message_id = self._waiting.popleft()
                entry = self._entries.get(message_id)
                payload = None if entry is None else self._read(message_id, entry)
                if payload is not None:
                    return message_id, payload
        return None

    def put_back(self, message_ids: Iterable[str]) -> None:
        """Put these, if still kept, at the head of the line, in this order."""
        with self._changed:
            self._waiting.extendleft(reversed([one for one in message_ids if one in self._entries]))

    def restart(self) -> None:
        """Everything that is kept is in line again, oldest first."""
        with self._changed:
            self._waiting = deque(self._entries)

    def remove(self, message_id: str) -> bool:
        """Forget an acknowledged message; False if it was not kept."""
        with self._changed:
            entry = self._entries.pop(message_id, None)
            if entry is None:
                return False
            if entry.payload is not None:
                self._memory_used -= entry.size
            else:
                self._disk_used -= entry.size
                entry.file.unlink(missing_ok=True)
            self._changed.notify_all()
            return True

    def wait_until_empty(self, timeout_seconds: float) -> bool:
        """Whether every message was acknowledged within the timeout."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._entries, timeout_seconds)

    def persist(self) -> None:
        """Write everything to disk, whatever the limits: the process is about to end."""
        with self._changed:
            for message_id, entry in self._entries.items():
                if entry.payload is not None:
                    self._move_to_disk(message_id, entry)

    def _move_to_disk(self, message_id: str, entry: _Entry) -> None:
        assert entry.payload is not None
        name = message_id.encode()
        try:
            with whole_file(entry.file) as partial, partial.open("wb") as file:
                file.write(len(name).to_bytes(4, "little") + name)
                file.write(entry.payload)
        except OSError as error:  # a full disk is no reason to lose it: it stays in memory, and `is_full` says so
            self._say(error)
            return
        if self._room_is_short:
            self._room_is_short = False
            log.info("room_again", what="spool", folder=str(self._folder))
        entry.payload = None
        self._memory_used -= entry.size
        self._disk_used += entry.size

    def _say(self, error: OSError) -> None:
        """Once, until it can be written again."""
        if self._room_is_short:
            return
        self._room_is_short = True
        shortage = shortage_of(error, self._folder)
        why = {"folder": str(self._folder), "error": str(error)} if shortage is None else shortage.as_fields()
        log.warning("waiting_for_room", what="spool", effect="it stays in memory; no more prompts are taken", **why)

    def _read(self, message_id: str, entry: _Entry) -> bytes | None:
        if entry.payload is not None:
            return entry.payload
        try:
            data = entry.file.read_bytes()
        except OSError as error:
            log.error("spool_read_failed", file=str(entry.file), trajectory_id=message_id, error=str(error))
            self._disk_used -= entry.size
            del self._entries[message_id]
            self._changed.notify_all()
            return None
        return data[4 + len(message_id.encode()) :]

    def _load(self) -> None:
        remove_partial_files(self._folder)
        for file in sorted(self._folder.glob(f"*{_SUFFIX}")):
            message_id = _read_id(file)
            number = re.match(r"[0-9]+(?=-|$)", file.stem)
            if message_id is None or number is None:
                log.error("spool_file_unreadable", file=str(file), remedy="renamed to .bad and left there")
                move(file, file.with_suffix(".bad"))
                continue
            size = file.stat().st_size - 4 - len(message_id.encode())
            self._entries[message_id] = _Entry(file, size, None)
            self._disk_used += size
            self._sequence = max(self._sequence, int(number[0]))
        self._waiting.extend(self._entries)
        if self._entries:
            log.info("spool_reloaded", count=len(self._entries), num_bytes=self._disk_used, folder=str(self._folder))


def _read_id(file: Path) -> str | None:
    """The message id a spool file begins with; None when it is no spool file."""
    try:
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(4), "little")
            name = stream.read(size) if 0 < size <= _MAX_ID_BYTES else b""
        return name.decode() if len(name) == size and size else None
    except (OSError, UnicodeDecodeError):
        return None

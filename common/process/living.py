"""Which processes of a run live: each has a note in ``<run>/.processes``, locked for as long as it lives.

The kernel gives the lock back when the process ends, however it ends. A frozen one keeps it, so nobody takes it for
dead and starts the run a second time beside it.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, NamedTuple

import structlog

from vcppo.common.errors import VcppoError

log = structlog.get_logger(__name__)

_DEADLINE_SECONDS = 10.0
_MOST_BYTES = 4096


class Living(NamedTuple):
    """A process that lives.

    Attributes:
        name: ``learner``, ``generator-0``, …
        host: whose process id `pid` is; a container is a host of its own.
    """

    name: str
    pid: int
    host: str


@contextmanager
def noted(folder: Path, name: str) -> Iterator[None]:
    """As long as the block runs, this process is found by `living`. `folder` is made.

    Raises:
        VcppoError: somebody keeps our note locked.
    """
    note = note_down(folder, name)
    try:
        yield
    finally:
        if note is not None:
            Path(note.name).unlink(missing_ok=True)
            note.close()


def note_down(folder: Path, name: str) -> IO[str] | None:
    """This process' note; closing it, or the end of the process, gives the lock back. None: none can be kept there."""
    host, pid = socket.gethostname(), os.getpid()
    path = folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}-{host}-{pid}"
    end = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < end:
        try:
            folder.mkdir(exist_ok=True)
            note = path.open("w")
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(note.fileno()).st_ino:  # nobody took it for a dead one's meanwhile
                with suppress(OSError):  # no room: the lock is what counts
                    json.dump(Living(name, pid, host)._asdict(), note)
                    note.flush()
                return note
            note.close()
        except (BlockingIOError, FileNotFoundError):  # somebody looks at it just now
            time.sleep(0.01)
        except OSError as error:  # a disk that is full, a file system without locks
            log.warning("process_not_noted", file=str(path), error=str(error), effect="a second start is not refused")
            return None
    raise VcppoError(f"{path} is locked for {_DEADLINE_SECONDS:g} s: look who has it open (fuser {path}), and end it")


def living(folder: Path) -> list[Living]:
    """Those with a note in `folder`; notes of the dead are removed."""
    found = [one for path in sorted(folder.glob("*")) if (one := _look(path)) is not None]
    return sorted(found)


def described(processes: list[Living]) -> str:
    """Who lives, and how to end them."""
    here = socket.gethostname()
    names = ", ".join(f"{each.name} (pid {each.pid} on {each.host})" for each in processes)
    places: dict[str, list[str]] = {}
    for each in processes:
        places.setdefault(each.host, []).append(str(each.pid))
    kills = [
        f"kill -9 {' '.join(pids)}" + ("" if host == here else f" on {host}")
        for host, pids in sorted(places.items(), key=lambda place: (place[0] != here, place))
    ]
    return f"{names}. End what is left of it: {'; '.join(kills)}"


def _look(path: Path) -> Living | None:
    try:
        with path.open() as note:
            try:
                fcntl.flock(note, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read(path, note.read(_MOST_BYTES))
            with suppress(OSError):  # a folder that we may only read
                path.unlink()
    except OSError:  # gone, or not ours to open
        return None
    return None


def _read(path: Path, text: str) -> Living:
    try:
        found = json.loads(text)
        return Living(str(found["name"]), int(found["pid"]), str(found["host"]))
    except (ValueError, TypeError, KeyError):  # it is just being written: the name says it all
        pid = re.search(r"[0-9]+$", path.name)
        return Living(path.name, int(pid[0]) if pid else 0, socket.gethostname())

"""Which of several generator containers has which GPUs: by locks on files in the run folder that all of them share.

Replicas of a compose service are all given the same devices. Each takes those that nobody holds. A lock ends with the
process that took it, however that ends, so a container that is started again finds its devices free.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from vcppo.common.errors import DeadlineExceeded
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import PlacementError, one_a_gpu, take

_DEADLINE_SECONDS = 30.0
_PAUSE_SECONDS = 0.05


class Claim:
    """Devices that are ours until `close`, or until this process ends."""

    def __init__(self, devices: Sequence[Device], locks: Sequence[IO[str]]) -> None:
        self.devices, self._locks = tuple(devices), list(locks)

    def close(self) -> None:
        """Give them back."""
        while self._locks:
            self._locks.pop().close()


def claim(folder: Path, devices: Sequence[Device], count: int, who: str) -> Claim:
    """Take `count` devices that nobody holds, of one NUMA node where as many are free there.

    Args:
        folder: of the lock files; made where it is not there.
        who: is written into them, for people.

    Raises:
        PlacementError: fewer are free.
        DeadlineExceeded: somebody else has been choosing for half a minute.
    """
    folder.mkdir(parents=True, exist_ok=True)
    usable = one_a_gpu(devices)
    with _alone(folder):
        free = {device: lock for device in usable if (lock := _lock(_file(folder, device.key))) is not None}
        chosen = take(list(free), count) if len(free) >= count else ()
        for device in set(free) - set(chosen):
            free[device].close()
    if not chosen:
        raise PlacementError(
            f"{who} needs {count} of the {len(usable)} GPUs that it sees, and others hold all but {len(free)} (the"
            f" files in {folder} say who): give generators more devices (GENERATOR_DEVICES), or run fewer of them"
        )
    for device in chosen:
        with contextlib.suppress(OSError):  # no room; it is for people only
            os.truncate(free[device].fileno(), 0)
            os.write(free[device].fileno(), f"{who}\n".encode())
    return Claim(chosen, [free[device] for device in chosen])


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One chooses at a time: of two that want several devices each, neither would get enough."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while (lock := _lock(folder / "choosing")) is None:
        if time.monotonic() >= deadline:
            raise DeadlineExceeded(f"another generator has kept {folder}/choosing locked for {_DEADLINE_SECONDS:g} s")
        time.sleep(_PAUSE_SECONDS)
    try:
        yield
    finally:
        lock.close()


def _file(folder: Path, key: str) -> Path:
    return folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', key)}.lock"


def _lock(path: Path) -> IO[str] | None:
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file

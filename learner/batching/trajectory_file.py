"""``trajectories.msgpack``: trajectories recorded once, in an append-only file that survives a crash.

A stream of msgpack arrays ``[crc32 of the payload, payload]``; the payload is the wire form
(`vcppo.common.records.wire`). A tail torn by a crash is cut off when the file is opened; what was in it was not
committed, so the store still has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import structlog

from vcppo.common.errors import VcppoError
from vcppo.common.files.whole_file import append_whole
from vcppo.common.process.patience import patiently
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.trajectory_records import BAD_RECORD, pack_record, records
from vcppo.common.records.wire import decode_trajectory
from vcppo.common.text.yaml_text import one_line

log = structlog.get_logger(__name__)

_PAYLOAD_START = b"vct"  # as token ids these bytes would be beyond any vocabulary


class TrajectoryFile:
    """Read at once, then appended to. Keeps which prompts it holds: each is recorded once.

    Args:
        stopping: whether the process was asked to stop; then it does not wait for room.
    """

    def __init__(self, path: Path, stopping: Callable[[], bool] = lambda: False) -> None:
        self._stopping = stopping
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.trajectories: list[Trajectory] = []
        self._prompt_ids: set[str] = set()
        sound = self._read()
        # To append, wherever the end is by then: an earlier process that wakes up overwrites nothing.
        self._file = path.open("ab", buffering=0)
        if (size := path.stat().st_size) > sound:
            log.warning("torn_tail_removed", file=str(path), num_bytes=size - sound)
            self._file.truncate(sound)

    def __len__(self) -> int:
        return len(self.trajectories)

    def append(self, payloads: Iterable[bytes]) -> int:
        """Add those whose prompt is not in yet; they are on disk when this returns. Returns how many were new.

        Waits while there is no room. Raises ResourceExhausted when asked to stop meanwhile.
        """
        new: dict[str, Trajectory] = {}
        packed = []
        for payload in payloads:
            trajectory = decode_trajectory(payload)
            if trajectory.prompt_id not in self._prompt_ids and trajectory.prompt_id not in new:
                new[trajectory.prompt_id] = trajectory
                packed.append(pack_record(payload))
        content = b"".join(packed)
        patiently(
            lambda: append_whole(self._file, content, sync=True), "the recording", self.path.parent, self._stopping
        )
        self._prompt_ids.update(new)
        self.trajectories.extend(new.values())
        return len(new)

    def close(self) -> None:
        """Close the file; every trajectory in it was written whole already."""
        self._file.close()

    def _read(self) -> int:
        """Fill `trajectories`; returns the length in bytes of the sound part.

        Raises:
            VcppoError: a whole record is damaged: that is no torn tail, but a broken disk or another file.
        """
        if not self.path.exists():
            return 0
        sound = 0
        with self.path.open("rb") as file:
            try:
                for trajectory, end in records(file):
                    if trajectory.prompt_id not in self._prompt_ids:  # two processes may have written it
                        self._prompt_ids.add(trajectory.prompt_id)
                        self.trajectories.append(trajectory)
                    sound = end
            except BAD_RECORD as error:
                raise self._damaged(sound, one_line(error)) from error
            file.seek(sound)
            if file.read().count(_PAYLOAD_START) > 1:  # torn is the last record only; a bad length swallows the others
                raise self._damaged(sound, "a record is longer than it was")
        return sound

    def _damaged(self, sound: int, why: str) -> VcppoError:
        return VcppoError(
            f"{self.path} is damaged after {sound} bytes ({len(self.trajectories)} trajectories): {why}; "
            "restore it from a backup, or remove it and the same command records again"
        )

"""Trajectories in files: a stream of msgpack arrays ``[crc32 of the payload, payload]``, the payload in wire form.

Written by the learner (value pretraining's recording, samples of RL steps), read also while it writes.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgpack

from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import WireError, decode_trajectory

MAX_RECORD_BYTES = (1 << 31) - 1
BAD_RECORD = (ValueError, TypeError, msgpack.UnpackException, WireError)
"""What `records` raises for a whole record that is damaged."""


def pack_record(payload: bytes) -> bytes:
    """One record, to be appended."""
    packed: bytes = msgpack.packb([zlib.crc32(payload), payload])
    return packed


def records(file: IO[bytes]) -> Iterator[tuple[Trajectory, int]]:
    """Each whole record and where it ends. A last one that is torn ends it, a damaged one raises `BAD_RECORD`."""
    unpacker = msgpack.Unpacker(file, max_buffer_size=MAX_RECORD_BYTES, max_array_len=2, max_map_len=0)
    for record in unpacker:
        yield _decode(record), unpacker.tell()


def read_trajectories(path: Path) -> Iterator[Trajectory]:
    """For who only looks: what is sound from the beginning of the file on; nothing where there is no file."""
    try:
        with path.open("rb") as file:
            for trajectory, _ in records(file):
                yield trajectory
    except FileNotFoundError:
        return
    except BAD_RECORD:
        return


def _decode(record: object) -> Trajectory:
    if not isinstance(record, list) or len(record) != 2 or not isinstance(record[1], bytes):
        raise ValueError("not a [crc32, payload] record")
    if zlib.crc32(record[1]) != record[0]:
        raise ValueError("a record does not have its checksum")
    return decode_trajectory(record[1])

"""What comes in on the sockets before the wire format: multipart messages to the buffer, replies to a sender, and the
control port's codec. The case's first byte says which; frames are length-prefixed, as a file can't hold several.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack
import numpy as np

from tests.fuzz import wire
from tests.fuzz.rig.harness import ACCEPTED, Harness
from tests.fuzz.rig.mutate import mutate_bytes, odd_key, odd_value
from tests.fuzz.rig.mutate import pack as pack_odd
from vcppo.common.transport.control import ControlError, _parse_reply, _parse_request, pack, unpack
from vcppo.common.transport.frames import OVERSIZED, TRAJECTORY
from vcppo.common.transport.receiver import Received, TrajectoryReceiver

MAX_BYTES = 4096
_ENDPOINT = "tcp://127.0.0.1:1"


class _Parser(TrajectoryReceiver):
    """The receiver's parser without its socket."""

    def __init__(self) -> None:
        self._max_bytes = MAX_BYTES


_PARSER = _Parser()


def one(data: bytes) -> str:
    """The first byte chooses the reader."""
    kind, rest = data[:1], data[1:]
    if kind == b"m":
        return _message(split(rest))
    if kind == b"q":
        return _request(rest)
    return _reply(rest)


def _message(frames: list[bytes]) -> str:
    """What the receiver makes of it can be acked, refused, logged and stored."""
    if not frames:
        return "message"
    received: Received = _PARSER._parse(frames)
    assert len(received.message_id.encode()) <= 256 and "\n" not in received.message_id
    assert len(received.sender) <= 5 * len(frames[0]) and len(received.error.encode()) < 1024
    assert len(received.payload) <= max(8 << 20, *map(len, frames)), "a joined payload outgrew its batch"
    received.sender.encode()
    return received.error.partition(":")[0]


def _request(data: bytes) -> str:
    try:
        method, arguments = _parse_request(data)
    except ControlError:
        return "request"
    except ValueError:
        return "request, codec"
    assert type(method) is str and type(arguments) is dict
    return _again({"method": method, "args": arguments})


def _reply(data: bytes) -> str:
    try:
        reply = _parse_reply(data, _ENDPOINT)
    except ControlError:
        return "reply"
    return _again(reply)


def _again(value: Any) -> str:
    """What was read can be written, and reads the same."""
    assert pack(unpack(pack(value))) == pack(value)
    return ACCEPTED


def join(frames: list[bytes]) -> bytes:
    return b"".join(len(frame).to_bytes(3, "little") + frame for frame in frames)


def split(data: bytes) -> list[bytes]:
    frames: list[bytes] = []
    while len(data) >= 3:
        size = int.from_bytes(data[:3], "little")
        frames.append(data[3 : 3 + size])
        data = data[3 + size :]
    return frames


def seeds() -> list[bytes]:
    payload = wire.seeds()[0]
    array = {"weights": np.arange(6, dtype=np.float32).reshape(2, 3), "names": ["a", "b"], "flag": True}
    return [
        b"m" + join([b"generator-0", TRAJECTORY, b"rl-0@generator-0.1", payload]),
        b"m" + join([b"generator-0", OVERSIZED, b"rl-0@generator-0.1", payload[:40], b"1048576"]),
        b"q" + pack({"method": "update", "args": array}),
        b"q" + pack({"method": "pause", "args": {}}),
        b"r" + pack({"ok": True, "result": array}),
        b"r" + pack({"ok": False, "error": "EngineError: no"}),
    ]


_SEEDS = seeds()
_KINDS = (TRAJECTORY, OVERSIZED, b"ack", b"", b"trajectory ", b"\xff" * 9000)
_IDS = (
    b"rl-0@g.1",
    b"",
    b"\n",
    b"a\nb",
    b"\xff\xfe",
    b"x" * 256,
    b"x" * 257,
    b"\xc3\xa9" * 128,
    b"@",
    b"\0",
    b"\x1b[2J",
)
_SIZES = (b"1", b"", b"-1", b"9" * 19, b"9" * 30, b"\xb2", b"1e9", b"\xd9\xa3")
_TYPES = (
    "<f4",
    "<i8",
    ">f4",
    "|b1",
    "O",
    "V8",
    "S4",
    "(2,)f4",
    "f4,f4",
    "(2",
    "(1,",
    "i4,(",
    "m8",
    "<f",
    "",
    "\0",
    "{}",
    "f" * 300,
)
_SHAPES = ([2], [-1], [-1, -1], [2**63], [2**31, 2**31], [[2]], "2", None, [0], [1] * 100, [2.0], {"a": 1}, 2, [True])


def draw(rng: Random) -> bytes:
    chance = rng.random()
    if chance < 0.3:
        return b"m" + join(draw_frames(rng))
    if chance < 0.6:
        return rng.choice((b"q", b"r")) + pack_odd(_odd_call(rng))
    seed = rng.choice(_SEEDS)
    return seed[:1] + mutate_bytes(rng, seed[1:]) if chance < 0.97 else seed


def draw_frames(rng: Random) -> list[bytes]:
    identity = rng.choice((b"generator-0", b"\0abcd", b"\xff" * 255, b"\x1b]0;x\x07", b"g\n"))
    payload = wire.draw(rng)[: rng.choice((10, MAX_BYTES, MAX_BYTES + 1))]
    frames = [identity, rng.choice(_KINDS[:2]), rng.choice(_IDS), payload]
    if frames[1] == OVERSIZED:
        frames.append(rng.choice(_SIZES))
    for _ in range(rng.choice((0, 0, 1, 2))):
        at = rng.randrange(1, len(frames) + 1)
        frames[at:at] = [rng.choice((*_KINDS, *_IDS, payload))]
    if rng.random() < 0.2:
        del frames[rng.randrange(1, len(frames)) :]
    return frames


def _odd_call(rng: Random) -> dict[Any, Any]:
    call: dict[Any, Any] = {"method": "update", "args": {"x": _odd_array(rng), "y": odd_value(rng)}, "ok": True}
    call["result"] = call["args"]
    for _ in range(rng.choice((0, 0, 1, 2))):
        call[rng.choice(("method", "args", "ok", "result", "error", odd_key(rng)))] = odd_value(rng)
    return call


def _odd_array(rng: Random) -> Any:
    raw = rng.choice((bytes(8), b"", bytes(7), "text", None, 5, [1], bytes(64)))
    parts = [rng.choice(_TYPES), rng.choice(_SHAPES), raw]
    if rng.random() < 0.3:
        parts[rng.randrange(3)] = odd_value(rng)
    return msgpack.ExtType(
        rng.choice((1, 1, 1, 2)), mutate_bytes(rng, pack_odd(parts)) if rng.random() < 0.2 else pack_odd(parts)
    )


HARNESS = Harness("frames", one, draw, seeds)

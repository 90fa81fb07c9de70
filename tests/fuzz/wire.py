"""The wire decoder: trajectories and prompts, from whole messages down to single bytes."""

from __future__ import annotations

import dataclasses
import json
import struct
from random import Random
from typing import Any

import msgpack
import numpy as np

from tests.fuzz.rig.harness import ACCEPTED, Harness, reason_of
from tests.fuzz.rig.mutate import mutate_bytes, odd_key, odd_value, pack
from vcppo.common.records.trajectory import Prompt, Segment, Trajectory, TrajectoryLimits, VersionSpan
from vcppo.common.records.wire import (
    WireError,
    checksum,
    decode_prompt,
    decode_trajectory,
    encode_prompt,
    encode_trajectory,
)

LIMITS = TrajectoryLimits(max_tokens=4096)
_FIELDS = frozenset(field.name for kind in (Trajectory, Prompt) for field in dataclasses.fields(kind))
_KNOWN = _FIELDS | {"message", "header", "checksum", "num_prompt", "num_response", "num_tokens", "token_ids"}
_WORDS = (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7FC00000, 0x3A83126F, 0xBF800000)
_PROBLEMS = (
    *("{}", "[]", "null", "", "{", '{"a":NaN}', '{"a":-Infinity}', '{"a":1e999}', '{"a":"\\ud800"}', '{"a":1,"a":2}'),
    *('{"a":' + "9" * 4000 + "}", '{"a":' + "9" * 5000 + "}", "[" * 3000, '{"a":' * 3000, '{"a":' + "[[],[]]," * 900),
)


def one(data: bytes) -> str:
    """The trajectory or the prompt in `data` survives the wire, or a `WireError` names what is wrong."""
    if data[:3] == b"vcp":
        return _prompt(data)
    try:
        trajectory = decode_trajectory(data, LIMITS)
    except WireError as error:
        return reason_of(error, _KNOWN)
    _same(decode_trajectory(encode_trajectory(trajectory), LIMITS), trajectory)
    return ACCEPTED


def _prompt(data: bytes) -> str:
    try:
        prompt = decode_prompt(data, LIMITS)
    except WireError as error:
        return reason_of(error, _KNOWN)
    _same(decode_prompt(encode_prompt(prompt), LIMITS), prompt)
    return ACCEPTED


def _same(left: Any, right: Any) -> None:
    for name in left.__dataclass_fields__:
        a, b = getattr(left, name), getattr(right, name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), name
        elif name == "segments":
            assert len(a) == len(b), name
            for one, other in zip(a, b, strict=True):
                for x, y in zip(one, other, strict=True):
                    same = x.dtype == y.dtype and x.tobytes() == y.tobytes() if isinstance(x, np.ndarray) else x == y
                    assert same, name
        elif name == "problem":
            assert json.dumps(a) == json.dumps(b), name  # NaN is not itself
        else:
            assert a == b and type(a) is type(b), name


def a_trajectory(num_prompt: int = 4, num_response: int = 6, **changes: object) -> Trajectory:
    """A valid one; two spans, one token that is no action."""
    mask = np.ones(num_response, bool)
    mask[num_response // 2] = num_response == 1
    fields: dict[str, Any] = {
        "id": "rl-000000-0000-0@generator-0.1",
        "prompt_id": "rl-000000-0000-0",
        "group_id": "rl-000000-0000",
        "sample_index": 0,
        "task": "chain_arithmetic",
        "prompt_token_ids": np.arange(num_prompt, dtype=np.int32),
        "response_token_ids": np.arange(num_response, dtype=np.int32),
        "action_mask": mask,
        "behaviour_log_probs": np.where(mask, -0.5, 0).astype(np.float32),
        "version_spans": (VersionSpan(3, num_response),),
        "finish_reason": "stop",
        "reward": 1.0,
        "outcome": "correct",
        "generator_id": "generator-0",
        "issue_version": 3,
        "timings": {"generate": 0.5, "verify": 0.01},
    }
    return Trajectory(**(fields | changes))


def a_segment(num_prompt: int = 4, num_response: int = 6) -> Segment:
    """Of a valid trajectory."""
    of = a_trajectory(num_prompt, num_response)
    return Segment(*(getattr(of, name) for name in Segment._fields))


def seeds() -> list[bytes]:
    prompt = Prompt("p", "g", 1, "t", np.arange(7, dtype=np.int32), {"value": "042"}, -5, 4, "rl", 100)
    nested = dataclasses.replace(
        prompt, answer={"tests": [{"in": [1, 2.5, None], "out": "µ"}]}, purpose="value_pretraining"
    )
    spans = (VersionSpan(0, 1), VersionSpan(2, 40), VersionSpan(1, 9))
    return [
        encode_trajectory(a_trajectory()),
        encode_trajectory(a_trajectory(1, 1, finish_reason="length", outcome="timeout", reward=-1.0, timings={})),
        encode_trajectory(a_trajectory(reward=0.25, components={"base": 0.5, "length_cost": -0.25})),
        encode_trajectory(a_trajectory(3, 5, segments=(a_segment(7), a_segment(2, 9)))),
        encode_trajectory(a_trajectory(20, 50, version_spans=spans, finish_reason="abort", outcome="unparsable")),
        encode_prompt(prompt),
        encode_prompt(nested),
    ]


class _Message:
    """A valid message taken apart once, so that a case costs microseconds."""

    def __init__(self, data: bytes) -> None:
        size = int.from_bytes(data[4:8], "little")
        self.data = data
        self.magic = data[:4]
        self.header: dict[str, Any] = msgpack.unpackb(data[8 : 8 + size])
        self.body = data[8 + size + -size % 8 : -8]
        self.names = list(self.header)

    def joined(self, packed: bytes, body: bytes) -> bytes:
        """With the right sum: only so does anybody look further."""
        return summed(
            b"".join([self.magic, len(packed).to_bytes(4, "little"), packed, b"\0" * (-len(packed) % 8), body])
        )


def summed(data: bytes) -> bytes:
    return data + checksum(data)


_MESSAGES = [_Message(data) for data in seeds()]


def draw(rng: Random) -> bytes:
    message = rng.choice(_MESSAGES)
    chance = rng.random()
    if chance < 0.50:
        return _with_odd_header(rng, message)
    if chance < 0.68:
        return message.joined(pack(message.header), _odd_body(rng, message.body))
    if chance < 0.74:
        return message.joined(mutate_bytes(rng, pack(message.header)), message.body)
    if chance < 0.82:
        return _misframed(rng, message)
    if chance < 0.84:
        return message.data
    if chance < 0.87:  # of an older version: it has no sum
        return message.data[:3] + b"1" + mutate_bytes(rng, message.data[4:-8])
    if chance < 0.95:
        return summed(mutate_bytes(rng, message.data[:-8]))
    return mutate_bytes(rng, message.data)


def _with_odd_header(rng: Random, message: _Message) -> bytes:
    header = dict(message.header)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        name = rng.choice(message.names)
        chance = rng.random()
        if chance < 0.07:
            header.pop(name, None)
        elif chance < 0.14:
            header[odd_key(rng)] = odd_value(rng)  # type: ignore[index]
        elif name == "problem":
            header[name] = rng.choice(_PROBLEMS)
        elif name == "version_spans":
            header[name] = [rng.choice((0, 1, 3, 6, 50, 2**62)) for _ in range(rng.choice((0, 1, 2, 4, 6, 9000)))]
        elif name == "segments" and chance < 0.9:
            header[name] = _odd_segments(rng, header.get(name))
        elif chance < 0.3 and type(header.get(name)) is int:
            header[name] += rng.choice((-1, 1, 4, 2**31))
        else:
            header[name] = odd_value(rng)
    return message.joined(pack(header), message.body)


def _odd_segments(rng: Random, segments: Any) -> list[Any]:
    """One more, one less, or one whose fields are not what they were."""
    found = [list(each) for each in segments] if type(segments) is list and all(map(_is_list, segments)) else []
    chance = rng.random()
    if chance < 0.2 or not found:
        return found + [rng.choice(([4, 6, "stop", [3, 6]], [], 7))] * rng.choice((1, 1, 2000))
    if chance < 0.3:
        return found[:-1]
    one = rng.choice(found)
    if one:
        one[rng.randrange(len(one))] = rng.choice((odd_value(rng), 1, 6, 2**31, "length", [0, 6], [3, 1, 2, 5]))
    return found


def _is_list(value: object) -> bool:
    return type(value) is list


def _odd_body(rng: Random, body: bytes) -> bytes:
    buffer = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 5))):
        if rng.random() < 0.8 and len(buffer) >= 4:
            struct.pack_into("<I", buffer, rng.randrange(len(buffer) // 4) * 4, rng.choice(_WORDS))
        elif buffer:
            buffer[-1 - rng.randrange(min(len(buffer), 8))] = rng.randrange(256)  # the action mask
    return bytes(buffer)


def _misframed(rng: Random, message: _Message) -> bytes:
    data, kind = bytearray(message.data[:-8]), rng.randrange(5)
    if kind == 0:
        data[4:8] = (rng.choice((0, 1, len(data), 1 << 20, (1 << 20) + 1, 2**32 - 1))).to_bytes(4, "little")
    elif kind == 1:
        data[:4] = rng.choice((b"vct0", b"vct2", b"vcp1", b"vct1", b"\x80\x04\x95\0", b"PK\x03\x04"))
    elif kind == 2:  # containers that promise more than there is
        packed = rng.choice((b"\xdd\0\0\x20\0", b"\xdf\0\0\0\x40", b"\x81\xa1a", b"\x91")) * rng.choice((3, 200, 2000))
        return message.joined(packed, message.body)
    elif kind == 3:
        del data[rng.randrange(len(data)) :]
    else:
        data += rng.randbytes(rng.choice((1, 4, 9, 1000)))
    return summed(bytes(data))


HARNESS = Harness("wire", one, draw, seeds)

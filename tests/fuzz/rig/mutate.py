"""Mutations: of bytes whose form is not known, and values that a field never expects.

All of them draw from the `random.Random` they are given and from nothing else, so a case is its seed.
"""

from __future__ import annotations

from random import Random

import msgpack

# Beginnings of msgpack types, edges of integers, and what text and array formats trip over.
_BYTES = bytes.fromhex(
    "00 01 0a 22 2c 5b 5d 7b 7f 80 81 8f 90 a0 bf c0 c1 c4 c6 c7 c9 cb cf d3 d7 d9 db dc dd de df ff"
)
_INTEGERS = (0, 1, -1, 2, 7, 127, 128, 255, 256, 4095, 65536, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63 - 1)
_NUMBERS = (*_INTEGERS, 2**63, 2**64 - 1, -(2**31), -(2**63), 0.0, -0.0, 0.5, 1e-320, 1e39, 1e308, float("inf"))
_TEXTS = (
    "",
    "x",
    "1",
    "nan",
    "\0",
    "\x1b[2J",
    "a\nb",
    "µ" * 300,
    "x" * 5000,
    "../../etc",
    "\u202e",
    "{}",
    "[]",
    "stop",
)


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    """`data` after one to eight small accidents."""
    buffer = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        rng.choice(_ACCIDENTS)(rng, buffer)
    return bytes(buffer)


def odd_value(rng: Random, depth: int = 0) -> object:
    """Any value msgpack can say, mostly at an edge."""
    kind = rng.randrange(10 if depth < 3 else 6)
    if kind < 3:
        number = rng.choice(_NUMBERS)
        return number if rng.random() < 0.7 or abs(number) > 1e300 or isinstance(number, float) else -min(number, 2**63)
    if kind == 3:
        return rng.choice((None, True, False, float("nan"), -float("inf")))
    if kind == 4:
        return rng.choice(_TEXTS)
    if kind == 5:
        return _odd_binary(rng) if rng.random() < 0.3 else rng.choice(_TEXTS)
    if kind < 8:
        return [odd_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 40)))]
    return {odd_key(rng): odd_value(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 33)))}


def _odd_binary(rng: Random) -> object:
    kind = rng.randrange(3)
    if kind == 0:
        return rng.randbytes(rng.choice((0, 1, 8, 300)))
    if kind == 1:
        return msgpack.ExtType(rng.choice((0, 1, 5, 127)), rng.randbytes(rng.choice((0, 4, 12))))
    return msgpack.Timestamp(rng.choice((0, 2**34, 2**62)), rng.choice((0, 999_999_999)))


def odd_key(rng: Random) -> object:
    return rng.choice((*_TEXTS, b"x", b"id", "id", 1, f"k{rng.randrange(99)}"))


def pack(value: object) -> bytes:
    """msgpack of whatever `odd_value` made; what even msgpack can't say becomes nil."""
    try:
        packed: bytes = msgpack.packb(value)
    except (TypeError, ValueError, OverflowError):
        return b"\xc0"
    return packed


def _place(rng: Random, buffer: bytearray) -> int:
    return rng.randrange(len(buffer) + 1) if rng.random() < 0.7 else rng.randrange(min(len(buffer), 64) + 1)


def _flip(rng: Random, buffer: bytearray) -> None:
    if buffer:
        buffer[_place(rng, buffer) % len(buffer)] ^= 1 << rng.randrange(8)


def _set(rng: Random, buffer: bytearray) -> None:
    if buffer:
        buffer[_place(rng, buffer) % len(buffer)] = rng.choice(_BYTES)


def _insert(rng: Random, buffer: bytearray) -> None:
    at = _place(rng, buffer)
    buffer[at:at] = bytes([rng.choice(_BYTES)]) * rng.choice((1, 1, 2, 4, 100))


def _delete(rng: Random, buffer: bytearray) -> None:
    at = _place(rng, buffer)
    del buffer[at : at + rng.choice((1, 1, 2, 8, 64))]


def _truncate(rng: Random, buffer: bytearray) -> None:
    del buffer[_place(rng, buffer) :]


def _repeat(rng: Random, buffer: bytearray) -> None:
    at = _place(rng, buffer)
    part = buffer[at : at + rng.choice((1, 4, 16, 64))]
    buffer[at:at] = part * rng.choice((1, 1, 2, 30))


def _copy_over(rng: Random, buffer: bytearray) -> None:
    size = rng.choice((1, 4, 8, 32))
    source, at = _place(rng, buffer), _place(rng, buffer)
    buffer[at : at + size] = buffer[source : source + size]


def _word(rng: Random, buffer: bytearray) -> None:
    at = _place(rng, buffer)
    size = rng.choice((2, 4, 8))
    value = (rng.choice(_INTEGERS) % 2 ** (8 * size)).to_bytes(size, rng.choice(("little", "big")))
    buffer[at : at + size] = value


_ACCIDENTS = (_flip, _flip, _set, _set, _insert, _delete, _truncate, _repeat, _copy_over, _word)

"""A target with a bug that chance does not find: whether a coverage-guided run is guided by coverage."""

from __future__ import annotations

from random import Random

from tests.fuzz.rig.harness import ACCEPTED, Harness


def one(data: bytes) -> str:
    if len(data) > 5 and data[0] == 0x76 and data[2] == 0xC1 and data[4] == 0x7F and data[5] == 0x91:
        raise RuntimeError("planted")
    return ACCEPTED


def draw(rng: Random) -> bytes:
    return rng.randbytes(8)


def seeds() -> list[bytes]:
    return [bytes(8)]


HARNESS = Harness("planted", one, draw, seeds)

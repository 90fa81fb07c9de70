"""What the learner reads back from Redis, which others write to: payloads, claims, outstanding prompts, facts.

A case's first byte says which. Each is read, or the run ends with one line that names the part: never with a traceback.
"""

from __future__ import annotations

from random import Random
from typing import Any

import msgpack

from tests.fuzz import wire
from tests.fuzz.rig.harness import ACCEPTED, Harness
from tests.fuzz.rig.mutate import mutate_bytes, odd_value, pack
from vcppo.common.errors import VcppoError
from vcppo.common.records.wire import WireError
from vcppo.common.store import facts
from vcppo.common.store.codec import claims_from, outstanding_from
from vcppo.learner.batching.batch import Batch

_FACTS = (facts.POLICY_VERSION, facts.VOCABULARY_SIZE, facts.COMMITTED_STEP, facts.next_index("rl"))
_LONGEST_ERROR = 2000


def one(data: bytes) -> str:
    """Read as what it is, or refused by a `VcppoError` of one line."""
    kind, rest = data[:1], data[1:]
    try:
        if kind == b"p":
            return _payload(rest)
        if kind == b"f":
            return _fact(rest)
        return _entries(kind, rest)
    except WireError as error:
        return f"payload {str(error).partition(':')[0]}"[:24]
    except VcppoError as error:
        text = str(error)
        assert len(text) < _LONGEST_ERROR and text.isprintable(), text[:200]
        return text[:24]


def _payload(data: bytes) -> str:
    batch = Batch.decode([data], 3)
    assert len(batch.rollouts) == 1 and len(batch) >= 1 and batch.num_actions >= 0 and min(batch.lengths) > 0
    return ACCEPTED


def _fact(data: bytes) -> str:
    text = data.decode(errors="replace")

    class Store:
        def get_value(self, name: str) -> str:
            del name
            return text

    assert all(type(fact.read(Store())) is int for fact in _FACTS)
    return ACCEPTED


def _entries(kind: bytes, data: bytes) -> str:
    """`data`: msgpack of what Redis replies, a list of ids and hashes of ids."""
    try:
        reply: Any = msgpack.unpackb(data, raw=True, strict_map_key=False)
        ids = [[_raw(each) for each in members] for members in reply[0]]
        hashes = [{_raw(key): _raw(value) for key, value in each.items()} for each in reply[1]]
    except (ValueError, TypeError, AttributeError, IndexError, KeyError, msgpack.UnpackException):
        return "no reply of Redis"  # of another form than Redis' replies have
    if kind == b"c":
        claims = claims_from(ids[0] if ids else [], hashes[0] if hashes else {})
        assert list(claims) == sorted(claims) and all(type(each) is str for ids_ in claims.values() for each in ids_)
        return ACCEPTED
    if len(ids) != 4 or len(hashes) != 4:
        return "no reply of Redis"
    found = outstanding_from(ids, hashes)
    assert all(type(entry.prompt_id) is str for entry in found)
    return ACCEPTED


def _raw(value: object) -> bytes:
    """Redis knows strings of bytes only."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


_ID, _OTHER = b"rl-00000001-0", b"rl-00000001-1"
_CLAIMS = [[[_ID, _OTHER]], [{_ID: b"7", _OTHER: b"8"}]]
_OUTSTANDING = [
    [[_OTHER], [], [_ID], []],
    [
        {_ID: b"1", _OTHER: b"2"},
        {_ID: msgpack.packb(["rl-00000001", 3]), _OTHER: msgpack.packb(["rl-00000001", 3])},
        {_ID: msgpack.packb([_ID.decode() + "@generator-0.1", 3, 40])},
        {},
    ],
]
_NUMBERS = (b"7", b"-1", b"x", b"", b"9" * 5000, b"7.0", b"\xff", b"\xd9\xa3", b" 7", b"7_0", b"nan", b"1e3")


def seeds() -> list[bytes]:
    return [
        *(b"p" + data for data in wire.seeds()[:3]),
        b"f12",
        b"c" + msgpack.packb(_CLAIMS),
        b"o" + msgpack.packb(_OUTSTANDING),
    ]


_SEEDS = seeds()


def draw(rng: Random) -> bytes:
    chance = rng.random()
    if chance < 0.15:
        return b"p" + wire.draw(rng)
    if chance < 0.45:
        return b"f" + (rng.choice(_NUMBERS) if rng.random() < 0.8 else rng.randbytes(rng.randrange(9)))
    if chance < 0.75:
        steps = {_ID: b"7", _OTHER: b"8", b"x": b"9"}
        steps[rng.choice((_ID, _OTHER, b"x", b"\xff"))] = rng.choice(_NUMBERS)
        ids = [rng.choice((_ID, _OTHER, b"x", b"\xff\xfe", b"")) for _ in range(rng.choice((0, 1, 2, 9)))]
        data: bytes = msgpack.packb([[ids], [steps]])
        return b"c" + (mutate_bytes(rng, data) if rng.random() < 0.2 else data)
    ids_by_state, by_kind = [list(ids) for ids in _OUTSTANDING[0]], [dict(each) for each in _OUTSTANDING[1]]
    for _ in range(rng.choice((0, 1, 1, 2))):
        values = (rng.choice(_NUMBERS), pack(odd_value(rng)), pack([odd_value(rng), 3]), pack(["g", 3, 4]))
        rng.choice(by_kind)[rng.choice((_ID, _OTHER))] = rng.choice(values)
        rng.choice(by_kind).pop(rng.choice((_ID, _OTHER, b"x")), None)
        ids_by_state[rng.randrange(4)].append(rng.choice((_ID, b"y", b"\xff")))
    packed: bytes = msgpack.packb([ids_by_state, by_kind])
    return b"o" + packed


HARNESS = Harness("store", one, draw, seeds)

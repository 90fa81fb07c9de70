"""What we wrote ourselves and read back: a damaged disk, a broken member or a hostile one may have changed it.

A case's first byte says which reader: t trajectory file, s trained log, m manifest of a checkpoint, f a forged one
with its sum right, e a member's entry, d dead letter.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from random import Random

import msgpack

from tests.fuzz import wire
from tests.fuzz.rig.harness import ACCEPTED, Harness, scratch
from tests.fuzz.rig.mutate import mutate_bytes, odd_key, odd_value, pack
from vcppo.common.errors import VcppoError
from vcppo.common.store.codec import dead_letter_from, member_from
from vcppo.common.store.ledger import Member
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.engine.checkpoint import (
    MANIFEST,
    CheckpointError,
    CheckpointState,
    CheckpointStore,
    _content_sum,
    verify,
)
from vcppo.learner.rl.trained_log import check_trained_once, read_trained_log

_FOLDER = scratch()


def one(data: bytes) -> str:
    """Read, or refused by the reader's own error; never changed into something else."""
    reader = {b"t": _trajectories, b"s": _trained, b"m": _manifest, b"f": _forged, b"e": _member, b"d": _dead_letter}
    return reader.get(data[:1], _member)(data[1:])


def _trajectories(data: bytes) -> str:
    path = _FOLDER / "trajectories.msgpack"
    path.write_bytes(data)
    try:
        file = TrajectoryFile(path)
    except VcppoError:
        assert path.read_bytes() == data, "a refused file was changed"
        return "trajectories"
    kept = path.read_bytes()
    assert data.startswith(kept) and len(kept) >= sum(map(len, _whole_records(data)))
    file.append([wire.seeds()[0]])  # and it can be gone on with
    count = len(file)
    file.close()
    again = TrajectoryFile(path)
    assert len(again) == count
    again.close()
    return ACCEPTED


def _whole_records(data: bytes) -> list[bytes]:
    """The leading records of a file that nobody changed; none of one that was."""
    whole = [record for record in _RECORDS if record in data]
    return whole if data == b"".join(whole) else []


def _trained(data: bytes) -> str:
    path = _FOLDER / "trained.jsonl"
    path.write_bytes(data)
    lines = read_trained_log(path)
    assert all(type(step) is int for step in lines)
    try:
        check_trained_once(path, 1)
    except VcppoError:
        return "trained log"
    return ACCEPTED if lines else "nothing"


def _manifest(data: bytes) -> str:
    (_CHECKPOINT / MANIFEST).write_bytes(data)
    try:
        state = verify(_CHECKPOINT)
    except CheckpointError as error:
        text = str(error)
        assert text.startswith(str(_CHECKPOINT)) and len(text) < 2000 and text.isprintable()
        return text.removeprefix(str(_CHECKPOINT))[2:].replace("in manifest.json: ", "")
    assert state == _STATE, "a changed state passed"
    return ACCEPTED


def _forged(data: bytes) -> str:
    """What it says may be false, but not of another type, and not of files that are not there."""
    try:
        manifest = json.loads(data)
        manifest["sha256"] = _content_sum({name: manifest.get(name) for name in ("state", "files")})
        forged = json.dumps(manifest).encode()
    except (ValueError, TypeError, RecursionError, AttributeError):
        return "no JSON"
    try:
        return _manifest(forged)
    except AssertionError:
        state = verify(_CHECKPOINT)
        assert state.step == _STATE.step and all(type(each) is str for each in state.prompt_ids)
        assert all(type(each) is int for each in (*state.next_index.values(), state.num_ranks, state.zero_stage))
        return ACCEPTED


def _member(data: bytes) -> str:
    try:
        member = member_from(data)
    except ValueError as error:
        return str(error)[:14]
    sorted([member, *_MEMBERS], key=lambda each: each.id)
    return ACCEPTED


def _dead_letter(data: bytes) -> str:
    names = (b"reason", b"detail", b"source", b"size", b"payload")
    letter = dead_letter_from(b"1700000000000-0", dict(zip(names, data.split(b"\0"), strict=False)))
    assert letter.size >= 0 and all(type(text) is str for text in (letter.reason, letter.detail, letter.source))
    return ACCEPTED


def _record(payload: bytes) -> bytes:
    packed: bytes = msgpack.packb([zlib.crc32(payload), payload])
    return packed


def _make_checkpoint() -> Path:
    store = CheckpointStore(_FOLDER / "checkpoints", keep=2)
    (store.begin(7) / "weights").write_bytes(b"w" * 100)
    return store.publish(_STATE)


_STATE = CheckpointState(7, {"rl": 56}, ["rl-1", "rl-2"], "abc", num_ranks=1, zero_stage=0)
_CHECKPOINT = _make_checkpoint()
_RECORDS = [_record(payload) for payload in wire.seeds()[:3]]
_MEMBERS = [Member("generator-0", "generator", "tcp://127.0.0.1:1", 3, 5, {"pid": 1}), Member("b", "buffer")]
_LINE = {
    "step": 1,
    "policy_version": 0,
    "prompt_ids": ["a", "b"],
    "trajectory_ids": ["a@g", "b@g"],
    "staleness": [0, 1],
}
_LINES = "".join(
    json.dumps(_LINE | {"step": step, "prompt_ids": [f"p{step}"], "trajectory_ids": [f"t{step}"]}) + "\n"
    for step in range(1, 4)
).encode()
_MARK = "here"
_VALUES = (
    "null",
    "[]",
    "[[]]",
    "1",
    "true",
    '"x"',
    "1e999",
    "9" * 5000,
    "[" * 5000,
    '["a", 1]',
    "[2]",
    '["\\ud800"]',
    "{}",
)


def seeds() -> list[bytes]:
    return [
        b"t" + b"".join(_RECORDS),
        b"s" + _LINES,
        b"m" + (_CHECKPOINT / MANIFEST).read_bytes(),
        b"f" + (_CHECKPOINT / MANIFEST).read_bytes(),
        b"e" + msgpack.packb({"id": "g", "role": "generator", "epoch": 1, "info": {}}),
        b"d" + b"invalid\0p0: reward\0generator-0\x0017\0vct1",
    ]


_SEEDS = seeds()


def draw(rng: Random) -> bytes:
    seed = rng.choice(_SEEDS)
    kind, data = seed[:1], seed[1:]
    if rng.random() < 0.05:
        return seed
    if kind == b"t" and rng.random() < 0.5:
        records = [rng.choice(_RECORDS) for _ in range(rng.choice((1, 3)))]
        odd = msgpack.packb([rng.choice((0, zlib.crc32(b"x"))), b"x"])
        records.insert(
            rng.randrange(len(records) + 1), rng.choice((odd, pack(odd_value(rng)), _record(wire.draw(rng))))
        )
        whole = b"".join(records)
        return kind + whole[: rng.choice((len(whole), rng.randrange(len(whole) + 1)))]
    if kind in b"smf" and rng.random() < 0.7:
        lines = data.decode().strip().split("\n") if kind == b"s" else [data.decode()]
        at = rng.randrange(len(lines))
        lines[at] = _odd_json(rng, lines[at])
        return kind + "\n".join(lines).encode()
    if kind == b"e" and rng.random() < 0.8:
        member = {"id": "g", "role": "generator", "control_endpoint": "", "policy_version": 1, "epoch": 1, "info": {}}
        for _ in range(rng.choice((1, 1, 2))):
            member[rng.choice((*member, odd_key(rng)))] = odd_value(rng)  # type: ignore[index]
        return kind + pack(member)
    return kind + mutate_bytes(rng, data)


def _odd_json(rng: Random, text: str) -> str:
    """The object in `text` with one field, at any depth, gone or another."""
    whole = node = json.loads(text)
    while True:
        key = rng.choice(list(node))
        if not (isinstance(node[key], dict) and node[key] and rng.random() < 0.7):
            break
        node = node[key]
    if rng.random() < 0.2:
        del node[key]
    else:
        node[key] = _MARK
    return json.dumps(whole).replace(json.dumps(_MARK), rng.choice(_VALUES))


HARNESS = Harness("records", one, draw, seeds)

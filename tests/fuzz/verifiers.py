"""What a verifier reads: replies of its child process, and responses of a policy. The first byte says which reader.

Symbolic maths is not here: it may take for ever, which is for the child's deadline (`test_verifiers.py`).
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from random import Random
from typing import get_args

from tests.fuzz.rig.harness import ACCEPTED, Harness
from tests.fuzz.rig.mutate import mutate_bytes
from vcppo.common.records.trajectory import Outcome
from vcppo.common.tasks import Verdict
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic
from vcppo.common.tasks.code_answers import last_code_block, same_output
from vcppo.common.tasks.dataset import DatasetTask
from vcppo.generator.verifying.verifier_lines import parse_reply, reply_line

_OUTCOMES = get_args(Outcome)
_NUMBER = 7
_CHAIN = ChainArithmetic()


def _dataset() -> DatasetTask:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps({"question": f"q{n}", "answer": n}) + "\n" for n in range(20)))
        return DatasetTask(path=str(file), judge_truncated=True)


_DATASET = _dataset()


def one(data: bytes) -> str:
    """A reply is the verdict it was written as, or a `ValueError`; a response gets an outcome, in linear time."""
    kind, rest = data[:1], data[1:]
    if kind == b"r":
        return _reply(rest)
    text = rest.decode("utf-8", "surrogateescape")
    if kind == b"c":
        verdict = _CHAIN.verify({"value": "042"}, text, "stop")
        assert verdict.outcome in _OUTCOMES and len(verdict.extracted or "") < 10
        return ACCEPTED if verdict.outcome == "correct" else verdict.outcome
    part = _DATASET.judged_part(text, "stop") or ""
    block = last_code_block(part)
    assert part in text and (block is None or len(block) <= len(part) + 1)
    same_output(part[:2000], text[:2000], 1e-6)
    return ACCEPTED if block else "no code"


def _reply(data: bytes) -> str:
    try:
        verdict, detail = parse_reply(data, _NUMBER)
    except ValueError as error:
        return str(error)[:12]
    assert verdict.outcome in _OUTCOMES
    again = parse_reply(reply_line(_NUMBER, verdict, detail).encode(), _NUMBER)
    assert again == (verdict, detail)
    return ACCEPTED


_REPLIES = [
    reply_line(_NUMBER, Verdict("correct", "42")).encode(),
    reply_line(_NUMBER, Verdict("wrong", "41", 0.5, {"distance": 1.0})).encode(),
    reply_line(_NUMBER, Verdict("crash", None), "ValueError: \ud800").encode(),
]
_RESPONSES = [
    "<think>~A>1\n</think>042",
    "a\n```python\nprint(1)\n```\n",
    "~~~~\nx\n~~~\n~~~~",
    "</think>" * 3 + "1e5 nan inf",
]
_FIELDS = ('"number"', '"outcome"', '"extracted"', '"detail"', '"reward"', '"components"', '"more"')
_VALUES = (
    "7",
    "8",
    "true",
    "7.0",
    "null",
    '"wrong"',
    '"maybe"',
    "[]",
    "{}",
    '"\\ud800"',
    "1" * 5000,
    "[" * 5000,
    "NaN",
    "1e999",
    "0.5",
    '{"distance": 1}',
    '{"mean": 1}',
    '["wrong"]',
)
_PARTS = (
    "```",
    "~~~",
    "`" * 3000,
    " " * 3000,
    "`",
    "\n",
    "</think>",
    "٣",
    "²",
    "042",
    "\t",
    "\x0b",
    "\u2028",
    "1e999",
    "-",
    "_",
)


def seeds() -> list[bytes]:
    return [b"r" + _REPLIES[0], b"r" + _REPLIES[1], *(b"c" + text.encode() for text in _RESPONSES[:1])] + [
        b"p" + text.encode() for text in _RESPONSES
    ]


def draw(rng: Random) -> bytes:
    kind = rng.choice(b"rrcp").to_bytes(1, "big")
    if kind == b"r":
        if rng.random() < 0.4:
            return kind + mutate_bytes(rng, rng.choice(_REPLIES))
        fields = dict(zip(_FIELDS, ("7", '"wrong"', "null", "null", "null", "{}"), strict=False))
        for _ in range(rng.choice((0, 1, 1, 2))):
            fields[rng.choice(_FIELDS)] = rng.choice(_VALUES)
        return kind + ("{" + ", ".join(f"{name}: {value}" for name, value in fields.items()) + "}").encode()
    text = rng.choice(_RESPONSES)
    for _ in range(rng.choice((0, 1, 3, 9))):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_PARTS) + text[at:]
    return kind + (mutate_bytes(rng, text.encode()) if rng.random() < 0.3 else text.encode())


HARNESS = Harness("verifiers", one, draw, seeds)

"""The dataset reader: JSON lines, JSON and parquet files that are broken or hostile. A case's first byte says which."""

from __future__ import annotations

import io
import json
from random import Random
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from tests.fuzz.rig.harness import ACCEPTED, Harness, scratch
from tests.fuzz.rig.mutate import mutate_bytes
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import decode_prompt, encode_prompt
from vcppo.common.tasks import TaskError
from vcppo.common.tasks.dataset import DatasetTask

_FOLDER = scratch()
_ENDINGS = {b"l": ".jsonl", b"j": ".json", b"p": ".parquet"}
_ROWS = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(6)]


def one(data: bytes) -> str:
    """A task whose every problem can be issued, or a `TaskError` in a line that names the file."""
    file = _FOLDER / f"rows{_ENDINGS.get(data[:1], '.jsonl')}"
    file.write_bytes(data[1:])
    try:
        task = DatasetTask(path=str(file), held_out_fraction=0.5)
    except TaskError as error:
        text = str(error)
        lines = text.splitlines()
        assert str(file) in text and all(len(line) < 1500 and line.isprintable() for line in lines), text[:300]
        return lines[-1].removeprefix(str(file)).lstrip("0123456789: row").split("(")[0].split("'")[0][:24] or "?"
    for split in ("train", "held_out"):
        for problem in task.problems(split, 0, 0, 4):  # type: ignore[arg-type]
            json.dumps(problem.prompt).encode()
            str(problem.prompt[-1]["content"]).encode()  # type: ignore[index]
            prompt = Prompt("p", "g", 0, "t", np.ones(1, np.int32), problem.answer, 0, 0, "rl", 1)
            assert decode_prompt(encode_prompt(prompt)).answer == problem.answer
    return ACCEPTED


def _lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _table(table: pyarrow.Table) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


_TABLES = [
    _table(pyarrow.Table.from_pylist(_ROWS)),
    _table(pyarrow.table({"question": pyarrow.array([b"\xff\xfe", b"b"]), "answer": [1.5, float("nan")]})),
    _table(pyarrow.table({"question": [["a"], ["b"]], "answer": pyarrow.array([1, 2**62], pyarrow.timestamp("ns"))})),
    _table(pyarrow.table({"question": ["a", "b", None], "answer": pyarrow.array([1, 2, 3], pyarrow.decimal128(9, 2))})),
]


def seeds() -> list[bytes]:
    return [b"l" + _lines(_ROWS), b"j" + json.dumps(_ROWS).encode(), b"p" + _TABLES[0]]


_VALUES = (
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        '" "',
        "0",
        "-1",
        "1e999",
        "NaN",
        "-Infinity",
        "9" * 4000,
        "9" * 5000,
        "1" * 300 + ".5",
    ),
    *(
        '"\\ud800"',
        '"\\u0000"',
        '"\\u001b[2J"',
        '"x"',
        "[" * 3000,
        "[" * 200_000,
        '{"a":' * 5000,
        '"' + "x" * 300_000 + '"',
    ),
    *('"' + "\\\\" * 140_000 + '"', "tru", "'x'", '"\xff', "\ufeff", "//", '"$\\\\frac{1}{0}$"'),
)


def draw(rng: Random) -> bytes:
    kind = rng.choice(b"lljp").to_bytes(1, "big")
    if kind == b"p":
        table = rng.choice(_TABLES)
        return kind + (mutate_bytes(rng, table) if rng.random() < 0.9 else table)
    rows = [json.dumps(row) for row in _ROWS]
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        at = rng.randrange(len(rows))
        key = rng.choice(("question", "answer", "answer", "other", "\x1b[2J"))
        value = rng.choice(_VALUES)
        field = f"{json.dumps(key)}: {value}"
        rows[at] = value if rng.random() < 0.15 else '{"question": "q", "answer": "1", ' + field + "}"
    text = "\n".join(rows) if kind == b"l" else f"[{', '.join(rows)}]"
    data = text.encode("utf-8", "surrogatepass")
    return kind + (mutate_bytes(rng, data) if rng.random() < 0.3 else data)


HARNESS = Harness("dataset", one, draw, seeds)

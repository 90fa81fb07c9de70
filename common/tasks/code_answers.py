"""Reading a program out of a response, tests out of a row, and comparing what was printed with what should be."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import NamedTuple

from common.json_file import JsonError, parse_json
from common.tasks.interface import TaskError
from common.tasks.rows import Row
from common.tasks.rows_task import value_of

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})([^`\n]*)$")


class Case(NamedTuple):
    """What a program reads on stdin and what it must print."""

    input: str
    output: str


def last_code_block(text: str) -> str | None:
    """Content of the last closed fenced block (``` or ~~~), None without one. Linear in the length of `text`."""
    found: str | None = None
    fence, content = "", list[str]()
    for line in text.splitlines():
        match = _FENCE.match(line)
        if not fence and match:
            fence, content = match[1], []
        elif fence and match and match[1].startswith(fence) and not match[2].strip():
            fence, found = "", "\n".join(content) + "\n"
        elif fence:
            content.append(line)
    return found


def same_output(expected: str, printed: str, tolerance: float) -> bool:
    """Equal word by word; white space does not count, and numbers may be off by `tolerance`, relative or absolute."""
    wanted, given = expected.split(), printed.split()
    return len(wanted) == len(given) and all(_same_word(a, b, tolerance) for a, b in zip(wanted, given, strict=True))


def cases_of(row: Row, column: str) -> list[Case]:
    """The row's tests: a list of ``{input, output}``, or ``{input: [...], output: [...]}``, or either as JSON text.

    Raises:
        TaskError: anything else, or none; the text names the row's place.
    """
    value = value_of(row, column, "tests_column")
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError as error:
            raise TaskError(f"{row.place}: {column!r} is text, but {error}") from error
    if isinstance(value, Mapping):
        inputs, outputs = (value.get(name, value.get(f"{name}s")) for name in Case._fields)
        if not (isinstance(inputs, list) and isinstance(outputs, list) and len(inputs) == len(outputs)):
            raise TaskError(f"{row.place}: {column!r} is not {{input: [...], output: [...]}} with lists of one length")
        value = [{"input": given, "output": wanted} for given, wanted in zip(inputs, outputs, strict=True)]
    if not isinstance(value, list) or not value:
        raise TaskError(f"{row.place}: {column!r} is not a list of tests: give at least one, or drop the row")
    return [_test(test, f"{row.place}: {column!r} number {number}") for number, test in enumerate(value, start=1)]


def _test(value: object, place: str) -> Case:
    texts = [value.get(name) for name in Case._fields] if isinstance(value, Mapping) else []
    if not texts or not all(isinstance(text, str) for text in texts):
        raise TaskError(f"{place}: not {{input: text, output: text}}")
    return Case(*map(str, texts))


def _same_word(wanted: str, given: str, tolerance: float) -> bool:
    if wanted == given:
        return True
    if tolerance == 0:
        return False
    try:
        return math.isclose(float(wanted), float(given), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False

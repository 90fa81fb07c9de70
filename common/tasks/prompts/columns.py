"""Fields of a row, checked: every error names the row's place, the field, and the option that names the column."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import TaskError
from vcppo.common.tasks.rows import Row
from vcppo.common.text.yaml_text import one_line

_MAX_TEXT = 1 << 18


def value_of(row: Row, column: str, option: str) -> Any:
    """The row's field; TaskError says which fields there are, and which option names the column."""
    if column not in row.values:
        fields = one_line(", ".join(map(str, row.values)) or "none")
        raise TaskError(f"{row.place}: no field {column!r} (there are: {fields}): set task.options.{option}")
    return row.values[column]


def text_of(row: Row, column: str, option: str) -> str:
    """The row's field as text; a number will do."""
    value = value_of(row, column, option)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TaskError(f"{row.place}: {column!r} is {type(value).__name__}, not text or a number")
    if isinstance(value, float) and not isfinite(value):
        raise TaskError(f"{row.place}: {column!r} is {value}, not a number: mend the row")
    return checked_text(str(value), f"{row.place}: {column!r}")


def checked_text(text: str, where: str) -> str:
    """`text` itself; TaskError begins with `where` and says what no prompt may hold."""
    if "\0" in text:
        raise TaskError(f"{where} has a NUL character: mend the row")
    if len(text) > _MAX_TEXT:
        raise TaskError(f"{where} has {len(text)} characters, at most {_MAX_TEXT}: drop the row")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{where} has half a character (a lone surrogate): mend the row") from error
    return text


def list_of(row: Row, column: str, option: str) -> list[Any]:
    """The row's field as a list; JSON text of one will do. Fields of its objects that are null are left out: parquet
    gives every object the fields of all. JSON text is taken to the letter."""
    value = value_of(row, column, option)
    where = f"{row.place}: {column!r}"
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except JsonError as error:
            raise TaskError(f"{where} is text that is no list ({error}): set task.options.{option}") from error
    else:
        value = without_nulls(value)
    if not isinstance(value, list):
        raise TaskError(f"{where} is {type(value).__name__}, not a list: set task.options.{option}")
    checked_text(as_json(value, where), where)
    return value


def as_json(value: object, where: str) -> str:
    """JSON text of a value; TaskError begins with `where`."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise TaskError(f"{where} can't be written as JSON ({one_line(error)}): mend the row") from error


def without_nulls(value: Any, depth: int = 0) -> Any:
    """Nested dicts without the fields that are None; beyond 100 levels as it is."""
    if depth > 100:
        return value
    if isinstance(value, dict):
        return {name: without_nulls(each, depth + 1) for name, each in value.items() if each is not None}
    if isinstance(value, list | tuple):
        return [without_nulls(each, depth + 1) for each in value]
    return value

"""Rows of a data set, each with the place it came from, so that an error can name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from common.config.yaml_text import one_line
from common.tasks.interface import TaskError

_MAX_LINE_BYTES = 256 << 20
_MAX_JSON_BYTES = 1 << 30


class Row(NamedTuple):
    """One row and where it is, e.g. ``train.jsonl:17``."""

    values: Mapping[str, Any]
    place: str


def read_rows(path: str, subset: str | None, hub_split: str) -> Iterator[Row]:
    """Rows of a file, or of a Hugging Face data set when `path` is not a file name with a known ending.

    Raises:
        TaskError: not there, not readable, not rows.
    """
    readers = {".jsonl": _read_json_lines, ".json": _read_json, ".parquet": _read_parquet}
    file = Path(path)
    reader = readers.get(file.suffix)
    try:
        is_there, is_file = file.exists(), file.is_file()
    except OSError as error:  # a name too long, a folder we may not enter
        raise TaskError(f"task.options: {one_line(path)!r} can't be looked at: {error.strerror}") from error
    if reader is None:
        if is_there:
            raise TaskError(f"task.options: {path!r} must end in {', '.join(readers)}")
        return _read_hub(path, subset, hub_split)
    if not is_file:
        raise TaskError(f"task.options: no file {path!r} (looked from {Path.cwd()})")
    return reader(file)


def _read_json_lines(file: Path) -> Iterator[Row]:
    with _open(file) as lines:
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES + 1):
            number += 1
            place = f"{file}:{number}"
            if len(line) > _MAX_LINE_BYTES:
                raise TaskError(f"{place}: longer than {_MAX_LINE_BYTES} bytes: one object a line")
            line = line.strip()
            if line:
                yield _row(_json(_text(line, place), place, "one object a line"), place)


def _read_json(file: Path) -> Iterator[Row]:
    with _open(file) as whole:
        data = whole.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise TaskError(f"{file}: larger than {_MAX_JSON_BYTES} bytes: use .jsonl, which is read line by line")
    rows = _json(_text(data, str(file)), str(file), "a .json file holds one list of objects")
    if not isinstance(rows, list):
        raise TaskError(f"{file}: holds {type(rows).__name__}, not a list of objects; for one object a line use .jsonl")
    for number, values in enumerate(rows, start=1):
        yield _row(values, f"{file}: row {number}")


def _read_parquet(file: Path) -> Iterator[Row]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TaskError(f"{file}: reading parquet needs pyarrow: pip install pyarrow, or use .jsonl") from error
    try:
        rows = parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise TaskError(f"{file}: not readable as parquet: {one_line(error)}") from error
    for number, values in enumerate(rows, start=1):
        yield _row(values, f"{file}: row {number}")


def _read_hub(name: str, subset: str | None, split: str) -> Iterator[Row]:
    try:
        import datasets
    except ImportError as error:
        raise TaskError(
            f"task.options.path = {name!r} is no .jsonl, .json or .parquet file, so it would be "
            "a Hugging Face data set; those need the datasets library: pip install datasets"
        ) from error
    try:
        data = datasets.load_dataset(name, subset, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"data set {name!r} (subset {subset!r}, split {split!r}) can't be loaded: {error}; check the name, "
            "task.options.subset and hub_split, and the network"
        ) from error
    for number, values in enumerate(data, start=1):
        yield _row(values, f"{name}[{split}] row {number}")


def _open(file: Path) -> BinaryIO:
    try:
        return file.open("rb")
    except OSError as error:
        raise TaskError(f"{file}: can't be read: {error.strerror}") from error


def _text(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8-sig")  # Windows' editors put a mark in front
    except UnicodeDecodeError as error:
        raise TaskError(f"{place}: byte {error.start} is not UTF-8: save the file as UTF-8 text") from error


def _json(text: str, place: str, form: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"{place}:{error.lineno}" if error.lineno > 1 else place
        raise TaskError(f"{where}: not JSON ({error.msg} at column {error.colno}): {form}") from error
    except (ValueError, RecursionError) as error:  # an integer of more digits than Python reads; nesting without end
        raise TaskError(f"{place}: not JSON that can be read ({one_line(error)}): {form}") from error


def _row(values: object, place: str) -> Row:
    if not isinstance(values, dict):
        raise TaskError(f"{place}: is {type(values).__name__}, not an object with named fields")
    return Row(values, place)

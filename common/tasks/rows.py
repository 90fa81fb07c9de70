"""Rows of a data set, each with the place it came from, so that an error can name file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from common.tasks.interface import TaskError


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
    if reader is None:
        if file.exists():
            raise TaskError(f"task.options: {path!r} must end in {', '.join(readers)}")
        return _read_hub(path, subset, hub_split)
    if not file.is_file():
        raise TaskError(f"task.options: no file {path!r} (looked from {Path.cwd()})")
    return reader(file)


def _read_json_lines(file: Path) -> Iterator[Row]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"{file}:{number}"
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise TaskError(f"{place}: not JSON ({error.msg} at column {error.colno}): one object a line") from error
        yield _row(values, place)


def _read_json(file: Path) -> Iterator[Row]:
    try:
        rows = json.loads(_text(file))
    except json.JSONDecodeError as error:
        raise TaskError(
            f"{file}:{error.lineno}: not JSON ({error.msg}); a .json file holds one list of objects"
        ) from error
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
        table = parquet.read_table(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise TaskError(f"{file}: not readable as parquet: {error}") from error
    for number, values in enumerate(table.to_pylist(), start=1):
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


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise TaskError(f"{file}: byte {error.start} is not UTF-8: save the file as UTF-8 text") from error
    except OSError as error:
        raise TaskError(f"{file}: can't be read: {error.strerror}") from error


def _row(values: object, place: str) -> Row:
    if not isinstance(values, dict):
        raise TaskError(f"{place}: is {type(values).__name__}, not an object with named fields")
    return Row(values, place)

"""Rows of a data set, each with the place it came from, so that an error can name file and line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks.interface import TaskError
from vcppo.common.text.yaml_text import one_line

_MAX_LINE_BYTES = 256 << 20
_MAX_JSON_BYTES = 1 << 30
_MAX_SHOWN = 20  # rows that one error lists
_MAX_SHOWN_TEXT = 400
_MAX_PLACES = 10


class Row(NamedTuple):
    """One row and where it is, e.g. ``train.jsonl:17``."""

    values: Mapping[str, Any]
    place: str


class BadRow(NamedTuple):
    """A row that can't be used: where it is, and why."""

    place: str
    text: str


class RowsError(TaskError):
    """Rows that can't be used, all of them at once; those with the same fault in one line.

    Attributes:
        rows: each row by itself.
    """

    def __init__(self, rows: Sequence[BadRow]) -> None:
        places: dict[str, list[str]] = {}
        for row in rows:
            places.setdefault(row.text, []).append(row.place)
        lines = [
            one_line(f"{where[0]}: {text}", _MAX_SHOWN_TEXT) + _also(where[1:])
            for text, where in list(places.items())[:_MAX_SHOWN]
        ]
        if len(lines) > 1:
            lines.insert(0, f"{len(rows)} rows can't be used:")
        if len(places) > _MAX_SHOWN:
            lines.append(f"and rows with {len(places) - _MAX_SHOWN} more faults")
        super().__init__("\n".join(lines))
        self.rows: tuple[BadRow, ...] = tuple(rows)


def _also(places: Sequence[str]) -> str:
    if not places:
        return ""
    shown = ", ".join(one_line(Path(place).name, 60) for place in places[:_MAX_PLACES])
    more = len(places) - _MAX_PLACES
    return f" (so do {shown}{f' and {more} more rows' if more > 0 else ''})"


def read_rows(path: str, subset: str | None, hub_split: str) -> Iterator[Row | BadRow]:
    """Rows of a file, or of a Hugging Face data set when `path` is not a file name with a known ending.

    One bad row does not hide the next: it comes as a `BadRow`.

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


def _read_json_lines(file: Path) -> Iterator[Row | BadRow]:
    with _open(file) as lines:
        number = 0
        while line := lines.readline(_MAX_LINE_BYTES + 1):
            number += 1
            place = f"{file}:{number}"
            if len(line) > _MAX_LINE_BYTES:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(_MAX_LINE_BYTES)
                yield BadRow(place, f"longer than {_MAX_LINE_BYTES} bytes: one object a line")
            elif line.strip():
                yield _line(line, place)


def _line(line: bytes, place: str) -> Row | BadRow:
    try:
        return _row(_json(_text(line.strip(), place), place, "one object a line"), place)
    except TaskError as error:
        return BadRow(place, str(error).removeprefix(f"{place}: "))


def _read_json(file: Path) -> Iterator[Row | BadRow]:
    with _open(file) as whole:
        data = whole.read(_MAX_JSON_BYTES + 1)
    if len(data) > _MAX_JSON_BYTES:
        raise TaskError(f"{file}: larger than {_MAX_JSON_BYTES} bytes: use .jsonl, which is read line by line")
    rows = _json(_text(data, str(file)), str(file), "a .json file holds one list of objects")
    if not isinstance(rows, list):
        raise TaskError(f"{file}: holds {type(rows).__name__}, not a list of objects; for one object a line use .jsonl")
    yield from _numbered(rows, str(file))


def _numbered(rows: Iterable[object], source: str) -> Iterator[Row | BadRow]:
    for number, values in enumerate(rows, start=1):
        place = f"{source}: row {number}"
        try:
            yield _row(values, place)
        except TaskError as error:
            yield BadRow(place, str(error).removeprefix(f"{place}: "))


def _read_parquet(file: Path) -> Iterator[Row | BadRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise TaskError(f"{file}: reading parquet needs pyarrow: pip install pyarrow, or use .jsonl") from error
    try:
        rows = parquet.read_table(file).to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError, MemoryError) as error:
        raise TaskError(f"{file}: not readable as parquet: {one_line(error)}") from error
    yield from _numbered(rows, str(file))


def _read_hub(name: str, subset: str | None, split: str) -> Iterator[Row | BadRow]:
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
    yield from _numbered(data, f"{name}[{split}]")


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
        return parse_json(text)
    except JsonError as error:
        where = f"{place}:{error.line}" if error.line > 1 else place
        raise TaskError(f"{where}: {error}: {form}") from error


def _row(values: object, place: str) -> Row:
    if not isinstance(values, dict):
        raise TaskError(f"{place}: is {type(values).__name__}, not an object with named fields")
    return Row(values, place)

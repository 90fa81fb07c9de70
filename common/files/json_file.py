"""JSON read back: one safe reader for all, and small files of ours that hold one object.

`json.loads` raises `RecursionError` on deep nesting and `ValueError` on an integer of too many digits; a reader that
knows of one of them only ends its process on the other. `parse_json` turns both into one error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vcppo.common.errors import VcppoError
from vcppo.common.text.yaml_text import one_line

_MAX_BYTES = 64 << 20


class JsonError(ValueError):
    """Text that is no JSON, or JSON that can't be read.

    Attributes:
        line: in which line of the text, from 1, where that is known.
    """

    def __init__(self, text: str, line: int = 1) -> None:
        super().__init__(text)
        self.line = line


def parse_json(text: str | bytes) -> Any:
    """The value that `text` holds.

    Raises:
        JsonError: no JSON; not UTF-8 (of bytes); nested too deeply; an integer of more digits than Python reads. Its
            text is one printable line.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise JsonError(f"not JSON ({error.msg} at column {error.colno})", error.lineno) from error
    except RecursionError as error:
        raise JsonError("not JSON that can be read (nested too deeply)") from error
    except ValueError as error:
        raise JsonError(f"not JSON that can be read ({one_line(error)})") from error


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in `path`. The error ends in `remedy`."""
    try:
        with path.open("rb") as file:
            found = parse_json(file.read(_MAX_BYTES))
    except (OSError, JsonError) as error:
        raise VcppoError(f"{path}: is damaged ({one_line(error)}): {remedy}") from error
    if not isinstance(found, dict):
        raise VcppoError(f"{path}: is damaged (holds a {type(found).__name__}): {remedy}")
    return found

"""Small JSON files of ours, read back: one object, or a `VcppoError` that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.config.yaml_text import one_line
from common.errors import VcppoError

_MAX_BYTES = 64 << 20


def read_json_object(path: Path, remedy: str) -> dict[str, Any]:
    """The object in `path`. The error ends in `remedy`."""
    try:
        with path.open("rb") as file:
            found = json.loads(file.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise VcppoError(f"{path}: is damaged ({one_line(error)}): {remedy}") from error
    if not isinstance(found, dict):
        raise VcppoError(f"{path}: is damaged (holds a {type(found).__name__}): {remedy}")
    return found

"""Files of a model folder or hub id as they are written, without what transformers' classes would fill in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.files.json_file import JsonError, parse_json


class ModelError(VcppoError):
    """``model.path`` can't be used; the text says why and what to give instead."""

    exit_code = EXIT_REFUSED


def find_file(path: str, name: str) -> Path | None:
    """A file of a folder, or of a hub id that is cached or can be downloaded; None when there is none."""
    if Path(path).is_dir():
        file = Path(path) / name
        return file if file.is_file() else None
    from transformers.utils import cached_file

    try:
        found = cached_file(
            path, name, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
        )
    except (OSError, ValueError):  # no such repository: whoever loads the model says so
        return None
    return Path(found) if found else None


def read_stated(path: str, name: str) -> dict[str, Any]:
    """A JSON file of the model; empty where there is none. Raises ModelError when it is not JSON."""
    file = find_file(path, name)
    if file is None:
        return {}
    try:
        found = parse_json(file.read_bytes())
    except (OSError, JsonError) as error:
        raise ModelError(f"{file}: not readable as JSON: {error}: restore it or download it again") from error
    return found if isinstance(found, dict) else {}

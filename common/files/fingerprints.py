"""What files hold, as short digests: so that a result is never taken for that of a changed model, data set or task."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vcppo.common.user_modules import find_user_modules

WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf", ".msgpack", ".h5"})
_READ_WHOLE = 64 * 2**20  # bytes; of a larger file, samples
_SAMPLES, _SAMPLE = 256, 2**16
_IGNORED_SUFFIXES = frozenset({".md", ".png", ".jpg", ".gitattributes"})


def file_digest(path: Path) -> str:
    """Of a file's content: whole up to 64 MiB; of a larger one, its size and 256 pieces of 64 KiB evenly spread.

    Training changes every weight, so the pieces show it, in milliseconds instead of minutes.
    """
    size = path.stat().st_size
    digest = blake2b(str(size).encode(), digest_size=12)
    with path.open("rb") as file:
        if size <= _READ_WHOLE:
            while chunk := file.read(2**20):
                digest.update(chunk)
        else:
            for number in range(_SAMPLES):
                file.seek(number * (size - _SAMPLE) // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def model_contents(model: str, *, times: bool = False) -> dict[str, Any]:
    """Every file of a model folder that can change what the model says: relative name → what it holds.

    Args:
        model: a folder, or a hub id, which stands for the snapshot in the local cache (empty while there is none).
        times: weights also by their time of change: a file written anew with the same bytes is then another.
    """
    folder = Path(model) if Path(model).is_dir() else _cached(model)
    if folder is None:
        return {}
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or path.suffix in _IGNORED_SUFFIXES or not path.is_file():
            continue
        digest = file_digest(path)
        is_weights = path.suffix in WEIGHT_SUFFIXES
        found[name.as_posix()] = [digest, path.stat().st_mtime_ns] if times and is_weights else digest
    return found


def contents_named(value: object) -> dict[str, str]:
    """Files and code that a task's name or options name, anywhere in them: text → digest.

    A text counts that is the path of a file, or ``module:Class`` of a module with a source file. Hub data sets are
    known by their id only.
    """
    return {text: digest for text in sorted(set(_texts(value))) if (digest := _digest_named(text)) is not None}


def source_digest(folder: Path) -> str:
    """Of the Python files below a folder, by name and content."""
    digest = blake2b(digest_size=12)
    for path in sorted(folder.rglob("*.py")):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def _digest_named(text: str) -> str | None:
    if not text or len(text) > 4096 or "\0" in text or "\n" in text:
        return None
    try:
        if Path(text).is_file():
            return file_digest(Path(text))
    except OSError:  # no name a file could have, or one that can't be read: whoever uses it says so
        return None
    module, colon, name = text.partition(":")
    if not (colon and name.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        return None
    find_user_modules()
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return None
    origin = spec.origin if spec is not None else None
    return file_digest(Path(origin)) if origin is not None and Path(origin).is_file() else None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def _cached(model: str) -> Path | None:
    """The snapshot of a hub id that loading it would take, if it is in the local cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None

"""A secret in a file that nobody else can read."""

from __future__ import annotations

import stat
from pathlib import Path

from vcppo.common.errors import ConfigError

_MOST_BYTES = 16_384


def read_secret(setting: str, file: str) -> str:
    """The text of `file`, one printable line.

    Args:
        setting: the field that names the file, for the error.

    Raises:
        ConfigError: it can't be read, others can read it, or it holds no such line.
    """
    path = Path(file)
    try:
        with path.open("rb") as opened:
            mode = path.stat().st_mode
            text = opened.read(_MOST_BYTES + 1).decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting} = {file!r} can't be read ({error}): write the key into it") from None
    if stat.S_ISREG(mode) and mode & 0o007:
        raise ConfigError(f"{setting} = {file!r}: other users can read it: chmod 600 {file}")
    if not text or len(text) > _MOST_BYTES or not text.isprintable() or " " in text:
        raise ConfigError(f"{setting} = {file!r}: holds no key, which is one line without spaces: write it there")
    return text

"""A key comes from a file that others can't read, and nothing of it is in an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcppo.common.errors import ConfigError
from vcppo.common.files.secret_file import read_secret


@pytest.mark.parametrize(
    ("content", "mode", "because"),
    [
        (b"sesame\n", 0o644, "other users can read it: chmod 600"),
        (b"sesame\n", 0o602, "other users can read it"),
        (b"", 0o600, "holds no key"),
        (b"open sesame", 0o600, "holds no key"),
        (b"sesame\r\nX-More: 1", 0o600, "holds no key"),
        (b"sesam\xe9", 0o600, "can't be read"),
        (None, 0o600, "can't be read"),
    ],
)
def test_no_key(tmp_path: Path, content: bytes | None, mode: int, because: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    with pytest.raises(ConfigError, match=because) as error:
        read_secret("task.judge.key_file", str(path))
    text = str(error.value)
    assert text.startswith(f"task.judge.key_file = '{path}'") and "sesame" not in text.replace(str(path), "")


def test_a_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("sesame\n")
    path.chmod(0o640)
    assert read_secret("task.judge.key_file", str(path)) == "sesame"

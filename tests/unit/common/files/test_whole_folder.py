"""A folder is the old one or the new one, never a part."""

from __future__ import annotations

from pathlib import Path

import pytest

from vcppo.common.files.whole_folder import written_whole


def write_half(target: Path) -> None:
    with written_whole(target) as staging:
        staging.mkdir()
        (staging / "half").touch()
        raise OSError("disk full")


def test_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with written_whole(target) as staging:
        staging.mkdir()
        (staging / "new").touch()
        assert (target / "old").exists()
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_failure_leaves_the_old_one_and_a_second_try_starts_clean(tmp_path: Path) -> None:
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(OSError, match="full"):
        write_half(target)
    assert [path.name for path in target.iterdir()] == ["old"]
    with written_whole(target) as staging:
        assert not staging.exists()
        staging.mkdir()
    assert list(target.iterdir()) == []

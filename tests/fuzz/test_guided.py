"""Coverage-guided runs work: a planted bug is found and kept, a sound target is passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz.guided import run_guided
from tests.fuzz.planted import HARNESS as PLANTED
from tests.fuzz.targets import load

pytest.importorskip("atheris", reason="has no wheel for this Python")


def test_a_planted_bug_is_found(tmp_path: Path) -> None:
    assert run_guided(PLANTED, 60, tmp_path) != 0
    (kept,) = tmp_path.glob("planted-guided-crash-*")
    with pytest.raises(RuntimeError, match="planted"):
        PLANTED.one(kept.read_bytes())


@pytest.mark.parametrize("name", ["wire", "frames"])
def test_a_few_seconds_find_nothing(tmp_path: Path, name: str) -> None:
    assert run_guided(load(name), 3, tmp_path) == 0

"""The hostile hour's bookkeeping: ten million inputs, a finding and a dead process are both seen."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from tests.fuzz import hour
from tests.fuzz.hour import Line, Piece, pieces, run_piece, table
from tests.fuzz.targets import HOUR, NAMES


def test_the_hour_is_ten_million_inputs_at_every_target() -> None:
    found = pieces(1.0)
    assert sum(piece.count for piece in found) >= 10_000_000
    assert {piece.name for piece in found} == {*NAMES, "buffer", "control"} == set(HOUR)
    for name, (inputs, _) in HOUR.items():
        numbers = sorted((piece.first, piece.count) for piece in found if piece.name == name)
        assert sum(count for _, count in numbers) == inputs
        assert all(a + count == b for (a, count), (b, _) in itertools.pairwise(numbers))


def test_the_table_counts_findings_and_processes() -> None:
    text = "\n".join(table([Line("wire", 1000, 2.0, 3, 2, ["boom"])], 10.0))
    assert "wire" in text and "1,000" in text and "500" in text and "2 of 3" in text


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(1)", 1), ("import os; os.abort()", -6)])
def test_a_piece_that_fails_or_dies_is_seen(
    code: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    monkeypatch.setattr(hour.sys, "executable", str(program))
    assert run_piece(Piece("wire", 0, 1), 0, tmp_path)[1] == expected

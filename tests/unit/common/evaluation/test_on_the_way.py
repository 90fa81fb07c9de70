"""Which versions are evaluated, which is the best, when a run ends early."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcppo.common.evaluation.on_the_way import best_of, has_plateaued, is_due, read_evaluations


def rows(*figures: float) -> list[dict[str, object]]:
    return [{"version": 5 * n, "pass_at_1": each, "pass_at_k": 1 - each} for n, each in enumerate(figures)]


def test_due_are_the_start_if_asked_for_each_kth_and_the_last() -> None:
    due = [v for v in range(13) if is_due(v, every=5, at_start=True, num_steps=12)]
    assert due == [0, 5, 10, 12]
    assert [v for v in range(13) if is_due(v, every=5, at_start=False, num_steps=12)] == [5, 10, 12]
    assert [v for v in range(13) if is_due(v, every=0, at_start=True, num_steps=12)] == [0]
    assert not any(is_due(v, every=0, at_start=False, num_steps=12) for v in range(13))


def test_the_best_is_the_first_of_the_largest() -> None:
    assert best_of(rows(0.1, 0.6, 0.4, 0.6), "pass_at_1") == rows(0.1, 0.6, 0.4, 0.6)[1]
    assert best_of(rows(0.1, 0.6, 0.4), "pass_at_k") == rows(0.1)[0]
    assert best_of([], "pass_at_1") is None


@pytest.mark.parametrize(
    ("figures", "patience", "ends"),
    [
        ((0.1, 0.5, 0.5, 0.4), 2, True),
        ((0.1, 0.5, 0.4, 0.6), 2, False),  # the newest is better
        ((0.5, 0.4), 2, False),  # too few to tell
        ((0.5, 0.4, 0.3), 2, True),
        ((0.5, 0.4, 0.3), 0, False),
        ((), 1, False),
    ],
)
def test_a_plateau_is_so_many_in_a_row_that_are_no_better(
    figures: tuple[float, ...], patience: int, ends: bool
) -> None:
    assert has_plateaued(rows(*figures), "pass_at_1", patience) is ends


def test_lines_are_read_by_version_the_last_of_each_and_torn_ones_not(tmp_path: Path) -> None:
    path = tmp_path / "evaluations.jsonl"
    assert read_evaluations(path) == []
    lines = [
        {"version": 5, "pass_at_1": 0.5, "pass_at_k": 0.5},
        {"version": 0, "pass_at_1": 0.25, "pass_at_k": 0.5},
        {"version": 5, "pass_at_1": 0.75, "pass_at_k": 1},
        {"version": "7", "pass_at_1": 0.75, "pass_at_k": 1},
        {"version": 9, "pass_at_1": None, "pass_at_k": 1},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"version": 11, "pass')
    assert read_evaluations(path) == [lines[1], lines[2]]

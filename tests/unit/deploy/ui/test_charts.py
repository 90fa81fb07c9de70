"""Which numbers a chart has."""

from __future__ import annotations

from itertools import pairwise

import pytest

from vcppo.deploy.ui.charts import MOST_POINTS, Chart, drawn, overlaid, points, thinned


@pytest.mark.parametrize("count", [0, 1, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_a_long_run_is_thinned_evenly_and_ends_where_it_ends(count: int) -> None:
    rows = [{"step": step} for step in range(1, count + 1)]
    kept = thinned(rows)
    assert len(kept) == count if count <= MOST_POINTS else MOST_POINTS / 2 < len(kept) <= MOST_POINTS
    assert [row["step"] for row in kept][-1:] == [row["step"] for row in rows][-1:]
    gaps = {after["step"] - before["step"] for before, after in pairwise(kept)}
    assert len(gaps) <= 1


def test_what_is_no_number_is_a_gap() -> None:
    rows = [{"step": 1, "a": 0.5}, {"step": 2, "a": float("nan")}, {"step": 3}]
    chart = Chart("A", {"a": "a", "b": "b"})
    assert points(chart, rows) == [[1, 2, 3], [0.5, None, None], [None, None, None]]
    assert drawn(chart, rows) and not drawn(Chart("B", {"b": "b"}), rows)


def test_runs_lie_over_the_steps_of_all() -> None:
    runs = {"x": [{"step": 1, "a": 1}, {"step": 3, "a": 3}], "y": [{"step": 2, "a": 2}]}
    assert overlaid("a", runs) == [[1, 2, 3], [1.0, None, 3.0], [None, 2.0, None]]

"""Which numbers a chart has."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.unit.rig.fake_run import explainable_row
from vcppo.deploy.ui.charts import (
    EVALUATED,
    MOST_POINTS,
    Chart,
    Line,
    accuracy_chart,
    drawn,
    explainable_by_version,
    explainable_chart,
    for_browser,
    overlaid,
    thinned,
    together,
    updates_chart,
)
from vcppo.deploy.ui.weight_updates import Update


@pytest.mark.parametrize("count", [0, 1, MOST_POINTS, MOST_POINTS + 1, 5 * MOST_POINTS + 3])
def test_a_long_run_is_thinned_evenly_and_ends_where_it_ends(count: int) -> None:
    rows = [{"step": step} for step in range(1, count + 1)]
    kept = thinned(rows)
    assert len(kept) == count if count <= MOST_POINTS else MOST_POINTS / 2 < len(kept) <= MOST_POINTS
    assert [row["step"] for row in kept][-1:] == [row["step"] for row in rows][-1:]
    gaps = {after["step"] - before["step"] for before, after in pairwise(kept)}
    assert len(gaps) <= 1


def test_what_is_no_number_is_a_gap_and_what_is_nowhere_has_no_line() -> None:
    rows = [{"step": 1, "a": 0.5}, {"step": 2, "a": float("nan")}, {"step": 3}]
    chart = Chart("A", {"a": "a", "b": "b"})
    found = for_browser(chart, rows)
    assert found["points"] == [[1, 2, 3], [0.5, None, None]] and found["labels"] == ["a"]
    assert drawn(chart, rows) and not drawn(Chart("B", {"b": "b"}), rows)


def test_runs_lie_over_the_steps_of_all_each_with_its_intervals() -> None:
    ends = {"low": 0.5, "high": 2}
    runs = {"x": [{"step": 1, "a": 1, **ends}, {"step": 3, "a": 3}], "y": [{"step": 2, "a": 2}]}
    found = overlaid(Chart("A", {"": Line("a", "low", "high")}), runs)
    assert found["points"] == [[1, 2, 3], [1.0, None, 3.0], [None, 2.0, None]] and found["labels"] == ["x", "y"]
    assert found["intervals"] == [[[0.5, None, None], [2.0, None, None]], None]


def test_accuracy_of_held_out_problems_and_benchmarks_with_intervals() -> None:
    measured = {"eval/accuracy": 0.4, "eval/accuracy_low": 0.3, "eval/accuracy_high": 0.5, "eval/aime/accuracy": 0.1}
    rows = [{"step": 1, "reward/accuracy": 0.2}, {"step": 2, "reward/accuracy": 0.3, **measured}]
    rows = list(together(rows, [{"step": 0, EVALUATED.metric: 0.25, EVALUATED.low: 0.2, EVALUATED.high: 0.3}]))
    found = for_browser(accuracy_chart(rows), rows)
    assert found["labels"] == ["training batches", "held out", "aime", "vcppo eval, held out"]
    assert found["points"] == [
        [0, 1, 2], [None, 0.2, 0.3], [None, None, 0.4], [None, None, 0.1], [0.25, None, None],
    ]  # fmt: skip
    assert found["intervals"][1] == [[None, None, 0.3], [None, None, 0.5]] and found["intervals"][2] is None
    assert found["is_joined"] == [True, True, True, False] and found["is_share"]
    alone = for_browser(accuracy_chart([]), [{"step": 1, "reward/accuracy": 0.2}])
    assert alone["labels"] == ["training batches"]


def test_explained_against_explainable_is_of_the_newest_version() -> None:
    rows = [explainable_row(version, position) for version in (0, 20) for position in (0, 60, 120)]
    found = explainable_chart(rows)
    assert found is not None and "version 20" in found["note"]
    assert found["labels"] == ["explainable", "critic"] and found["points"][0] == [0, 60, 120]
    assert found["points"][2] == [pytest.approx(row.explained) for row in rows[3:]]
    low, high = found["intervals"][0]
    assert (low[1], high[1]) == rows[4].explainable_interval and found["intervals"][1] is None
    assert [row["step"] for row in explainable_by_version(rows)] == [0, 20]
    assert explainable_by_version(rows)[0]["explainable/most"] == rows[2].explainable
    assert explainable_chart([]) is None and explainable_by_version([]) == []


def test_a_version_that_was_sent_twice_counts_as_sent_last() -> None:
    sent = [Update(version, "", seconds, 0.1, 10, 2) for version, seconds in ((0, 1.0), (1, 2.0), (1, 3.0))]
    found = updates_chart(sent)
    assert found is not None and found["points"] == [[0, 1], [1.0, 3.0], [0.1, 0.1]]
    assert updates_chart([]) is None
    many = [Update(version, "", 1.0, None, None, None) for version in range(3 * MOST_POINTS)]
    found = updates_chart(many)
    assert found is not None and len(found["points"][0]) <= MOST_POINTS and found["points"][0][-1] == len(many) - 1

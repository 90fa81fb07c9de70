"""The page of a suite with a sweep: which runs stand for an arm, and arms at equal steps and at equal time."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tests.unit.deploy.report.test_suite_report import finished
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.cli import main
from vcppo.deploy.report.equal_time import accuracy_at, common_time, paired_interval, timed
from vcppo.deploy.report.suite_data import SuiteData, load_suite_data, runs_in
from vcppo.deploy.report.sweep_tables import equal_steps, equal_time, sweep


def paced(folder: RunFolder, seconds: float, accuracy: Callable[[int], float], before: float = 0.0) -> RunFolder:
    """Give a run of 30 steps a pace, an accuracy by step, and a stage that took that long before them."""
    path = folder.metrics_file("learner")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if row["stage"] == "rl":
            row |= {"time/step": seconds, "reward/accuracy": accuracy(row["step"])}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {"stage": "value pretraining and rl", "seconds": before + 30 * seconds}
    (folder.path / "stages.jsonl").write_text(json.dumps(stage) + "\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two arms, two values, seeds 0 and 1; the chosen values with 2, 3 and 4. `slow` learns twice as much a step."""
    suite = tmp_path / "s"
    for seed in (0, 1):
        for value in ("1e-05", "3e-05"):
            paced(finished(suite, f"slow-{value}", seed, 100), 20.0, lambda step: 0.9)
            paced(finished(suite, f"fast-{value}", seed, 100), 10.0, lambda step: 0.5)
    finished(suite, "cold_start", 0, 40, model="cold_start")
    for seed in (2, 3, 4):
        paced(finished(suite, "slow-3e-05", seed, 150 + seed), 20.0, lambda step: 0.02 * step, before=100.0)
        paced(finished(suite, "fast-1e-05", seed, 120), 10.0, lambda step, s=seed: 0.01 * step + 0.001 * s)
    arms = [{"name": name, "seeds": None} for name in ("slow", "fast")]
    tree = {"name": "s", "description": "", "seeds": [0, 1], "cold_start_seed": 0, "arms": arms, "reference": "slow",
            "sweep": {"field": "rl.actor_learning_rate", "values": [1e-5, 3e-5], "best_seeds": [2, 3, 4]}}  # fmt: skip
    (suite / "suite.json").write_text(json.dumps(tree))
    chosen = {"slow": {"value": 3e-5}, "fast": {"value": 1e-5}}
    (suite / "choices.json").write_text(json.dumps(chosen))
    return suite


@pytest.fixture
def data(folder: Path) -> SuiteData:
    return load_suite_data(runs_in(folder), folder)


def test_an_arm_is_its_fresh_runs_with_the_chosen_value(data: SuiteData) -> None:
    assert [(arm.name, arm.seeds) for arm in data.arms] == [("slow", [2, 3, 4]), ("fast", [2, 3, 4])]
    assert data.arms[0].pass_at_1 == [0.76, 0.765, 0.77]
    assert [(t.arm, t.value, t.chosen, t.runs.seeds) for t in data.swept] == [
        ("slow", 1e-5, False, [0, 1]), ("slow", 3e-5, True, [0, 1]),
        ("fast", 1e-5, True, [0, 1]), ("fast", 3e-5, False, [0, 1]),
    ]  # fmt: skip
    assert data.num_runs == 14 and data.cold_start is not None


def test_what_was_tried(data: SuiteData) -> None:
    table = sweep(data)
    assert table is not None
    assert table.rows[1] == ["slow", "3e-05", "90.0", "90.0", "50.0", "2", "chosen"]
    assert [row[-1] for row in table.rows] == ["", "chosen", "chosen", ""]


def test_equal_steps(data: SuiteData) -> None:
    table = equal_steps(data)
    assert table is not None
    (row,) = table.rows
    assert row[:4] == ["fast", "76.5", "60.0", "+16.5"]
    assert row[6:] == ["+16.0, +16.5, +17.0", "higher"]


def test_equal_time(data: SuiteData) -> None:
    """After 300 s `fast` has done 30 steps and `slow` 15; of these 300 s `slow` spends 100 before its first step."""
    table = equal_time(data)
    assert table is not None
    slow, fast = table.rows
    assert slow[:3] == ["slow", "20", "100"] and fast[:3] == ["fast", "10", "0"]
    assert (slow[3], fast[3]) == ("28.0", "29.3")  # means of steps 13 to 15, and of 28 to 30
    assert fast[4] == "-1.3" and slow[4] == "–"
    assert (slow[6], fast[6]) == ("18.0", "29.3")  # slow's steps 8 to 10
    assert fast[7] == "-11.3"


def test_a_critic_that_was_taken_costs_what_it_cost_its_maker(folder: Path) -> None:
    taker = folder / "fast-1e-05-seed2"
    (taker / "value_pretraining").mkdir(exist_ok=True)
    (taker / "value_pretraining" / "adopted.json").write_text(json.dumps({"from": "slow-3e-05-seed2"}))
    data = load_suite_data(runs_in(folder), folder)
    assert [run.preparation for run in data.arms[1].runs] == pytest.approx([100.0, 0.0, 0.0])


def test_the_page_shows_it_all(folder: Path, tmp_path: Path) -> None:
    assert main(["report", str(folder)]) == 0
    page = (folder / "report" / "report.md").read_text()
    for title in ("Equal steps: differences from the reference", "Equal wall time", "Every value that was tried"):
        assert f"### {title}" in page
    assert "14 finished runs of 2 arms, seeds 0, 1, 2, 3, 4" in page and "slow-1e-05-seed0" in page
    with (folder / "report" / "accuracy_over_time.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["curve"] == "slow (3)"]
    assert len(rows) == 60
    assert [float(row["x"]) for row in rows[:2]] == [20, 40] and float(rows[30]["x"]) == 120
    assert float(rows[14]["y"]) == pytest.approx(0.3)
    (folder / "choices.json").unlink()
    assert main(["report", str(folder)]) == 0, "what there is of a sweep can be seen before anything is chosen"
    assert "Not run: slow, fast." in (folder / "report" / "report.md").read_text()


@given(
    seconds=st.lists(st.floats(0.1, 100), min_size=1, max_size=30),
    before=st.floats(0, 500),
    share=st.floats(0, 1.2),
)
def test_nothing_that_had_not_ended_counts(seconds: list[float], before: float, share: float) -> None:
    accuracy = [float(i) for i in range(len(seconds))]
    run = timed(seconds, accuracy, before)
    total = common_time([run])
    assert total == pytest.approx(before + sum(seconds))
    at = share * float(total or 0)
    found = accuracy_at(run, at)
    ended = [i for i in range(len(seconds)) if before + sum(seconds[: i + 1]) <= at * (1 + 1e-6)]
    if found is None:
        assert before + seconds[0] > at
    else:
        assert found <= ended[-1] and found >= ended[-1] - 2
    assert accuracy_at(run, float(total or 0)) == pytest.approx(np.mean(accuracy[-3:]))


def test_the_interval_over_seeds_is_students(data: SuiteData) -> None:
    values = [0.1, 0.3, -0.05, 0.2, 0.15]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired_interval(values) == pytest.approx((expected.low, expected.high))
    assert paired_interval([0.1]) is None
    with pytest.raises(ValueError, match="2 durations of 1 steps"):
        timed([1.0, 2.0], [0.5])

"""Held-out accuracy as a run's metrics name it: at some steps, with or without an interval, of several benchmarks."""

from __future__ import annotations

from vcppo.deploy.run.measured_accuracy import HELD_OUT, held_out_text, metrics_of, newest

ROWS = [
    {"step": 0, "eval/accuracy": 0.2, "eval/accuracy_low": 0.1, "eval/accuracy_high": 0.3},
    {"step": 1, "reward/accuracy": 0.4},
    {"step": 5, "eval/accuracy": 0.5, "eval/math/hard/accuracy": 0.1, "eval/math/hard/accuracy_low": 0.05},
    {"step": 6, "eval/accuracy": float("nan"), "eval/aime/accuracy": None},
]


def test_labels_are_the_benchmarks_names() -> None:
    assert list(metrics_of(ROWS)) == ["held out", "aime", "math/hard"]
    assert metrics_of(ROWS)["math/hard"].high == "eval/math/hard/accuracy_high"
    assert metrics_of(ROWS[1:2]) == {} and metrics_of([]) == {}


def test_the_newest_is_the_last_that_is_a_number() -> None:
    found = newest(ROWS)
    assert found == (5, 0.5, None, None) and held_out_text(found) == "50.0 %"
    first = newest(ROWS[:2], HELD_OUT)
    assert first is not None and held_out_text(first) == "20.0 % (95 %: 10.0 to 30.0)"
    assert newest(ROWS[1:2]) is None and newest([]) is None

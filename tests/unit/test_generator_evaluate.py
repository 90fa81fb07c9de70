"""Figures of the evaluation against their definitions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from generator.evaluate import (
    ProblemRecord,
    bootstrap_interval,
    pass_at_k,
    summarise,
    wilson_interval,
    write_results,
)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 1, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 5, 3)])
def test_pass_at_k_is_the_share_of_draws_with_a_correct_one(n: int, c: int, k: int) -> None:
    draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
    assert pass_at_k(n, c, k) == pytest.approx(np.mean([any(draw) for draw in draws]))


def test_pass_at_k_refuses_more_draws_than_samples() -> None:
    with pytest.raises(ValueError, match="k=3, num_samples=2"):
        pass_at_k(2, 1, 3)


def test_wilson_interval_is_known_and_stays_in_range() -> None:
    assert wilson_interval(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson_interval(0, 10)[0] == 0.0
    assert wilson_interval(10, 10)[1] == pytest.approx(1.0)


def test_bootstrap_interval_holds_the_mean() -> None:
    values = np.random.default_rng(0).random(400)
    low, high = bootstrap_interval(values, seed=1)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def records() -> list[ProblemRecord]:
    return [
        ProblemRecord(0, "a", [3, 5], ["correct", "wrong"], ["stop", "stop"], ["1", "2"]),
        ProblemRecord(1, "b", [4, 8], ["unparsable", "timeout"], ["length", "stop"], [None, None]),
    ]


def test_summary_counts_every_sample() -> None:
    figures = summarise(records(), k=2, seed=0)
    assert figures["pass_at_1"] == 0.25
    assert figures["pass_at_k"] == 0.5
    assert figures["mean_length"] == 5.0
    assert figures["truncated_fraction"] == 0.25
    assert figures["outcomes"] == {"correct": 1, "wrong": 1, "unparsable": 1, "timeout": 1}


def test_results_are_read_back(tmp_path: Path) -> None:
    write_results(tmp_path / "eval" / "x.json", summarise(records(), 1, 0), records())
    assert json.loads((tmp_path / "eval" / "x.json").read_text())["num_samples"] == 4
    lines = (tmp_path / "eval" / "x.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["finish_reasons"] == ["length", "stop"]

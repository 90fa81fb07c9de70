"""What the critic believed, against loops in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from vcppo.deploy.ui.beliefs import Believed, by_place, calibration, changed_minds, misjudged


def response(id: str, values: list[float], reward: float, places: list[int] | None = None) -> Believed:
    where = np.array(places if places is not None else range(len(values)))
    outcome = "correct" if reward > 0 else "wrong"
    return Believed(id, outcome, reward, np.array(values), where, [f"t{n}" for n in range(int(where.max()) + 1)])


def some(count: int = 40) -> list[Believed]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 60, count)
    return [
        response(f"r{n}", list(rng.normal(0, 0.7, length)), float(rng.choice([-1, 1])))
        for n, length in enumerate(lengths)
    ]


def test_each_response_counts_alike_in_each_tenth() -> None:
    responses = some()
    found = by_place(responses)
    for name, chosen in (("right", "correct"), ("not right", "wrong")):
        mine = [each for each in responses if each.outcome == chosen]
        assert found[name].num_responses == len(mine)
        for tenth in range(10):
            means = []
            for each in mine:
                n = len(each.values)
                here = [value for i, value in enumerate(each.values) if min(9, i * 10 // n) == tenth]
                if here:
                    means.append(sum(here) / len(here))
            assert found[name].means[tenth] == pytest.approx(sum(means) / len(means))
    assert by_place([])["right"].means == [None] * 10


def test_what_was_believed_against_what_came() -> None:
    responses = some()
    bins = calibration(responses, -1.0, 1.0)
    rows = [(value, each.reward, each.id) for each in responses for value in each.values]
    for each in bins:
        last, first = each.greatest == 1.0, each.least == -1.0
        here = [
            row for row in rows
            if (each.least <= row[0] or first) and (row[0] < each.greatest or last)
        ]  # fmt: skip
        assert each.num_tokens == len(here) and each.num_responses == len({row[2] for row in here})
        assert each.predicted == pytest.approx(sum(row[0] for row in here) / len(here))
        assert each.realised == pytest.approx(sum(row[1] for row in here) / len(here))
    assert sum(each.num_tokens for each in bins) == len(rows)
    assert calibration([], -1.0, 1.0) == [] and calibration(responses, 1.0, 1.0) == []


def test_where_it_changed_its_mind_most_and_what_it_misjudged() -> None:
    steady = response("steady", [0.5, 0.5, 0.6], 1.0)
    slipped = response("slipped", [0.8, 0.7, -0.9, -0.8], -1.0, places=[0, 1, 5, 6])
    late = response("late", [0.1, 0.9], -1.0)
    minds = changed_minds([steady, slipped, late, response("one", [0.0], 1.0)], 2)
    assert [(turn.id, turn.token, turn.text) for turn in minds] == [("slipped", 1, "t1"), ("late", 0, "t0")]
    assert (minds[0].before, minds[0].after) == (0.7, -0.9)
    assert minds[0].lead == "t0" and minds[0].trail == "t2t3t4t5t6"


def test_what_it_misjudged_is_what_came_out_otherwise_the_worst_first() -> None:
    near, slipped = response("near", [0.5, 0.2], 1.0), response("slipped", [0.8, 0.7, -0.9, -0.8], -1.0)
    late, worse = response("late", [0.1, 0.3], -1.0), response("worse", [-0.5, 0.9, 0.8], -1.0)
    found = misjudged([near, slipped, late, worse, response("one", [0.5], -1.0)], -1.0, 1.0, 3)
    assert [each.id for each in found] == ["worse", "one", "late"]
    assert found[0].believed == 0.8 and found[0].turn is not None and found[0].turn.token == 0
    assert found[1].turn is None
    assert misjudged([near, slipped], -1.0, 1.0, 3) == []

"""Weight updates by the learner's log, and by its metrics where the log went elsewhere."""

from __future__ import annotations

from typing import Any

from vcppo.deploy.ui.weight_updates import WeightUpdates, from_log, from_metrics

SENT: dict[str, Any] = {
    "time": "2026-01-02T03:04:05.678Z", "event": "weights_broadcast", "policy_version": 3, "seconds": 0.2,
    "pause_seconds": 0.05, "num_bytes": 3 * 2**20, "members": ["g-0", "g-1"], "dropped": [], "canary_difference": 1e-6,
}  # fmt: skip


def test_each_update_of_the_log_and_what_failed() -> None:
    records = [
        {"event": "step"}, SENT | {"policy_version": 2, "seconds": 0.1}, SENT,
        {"time": "t1", "event": "broadcast_failed", "error": "peer closed\nits connection", "kind": "RuntimeError"},
        {"time": "t2", "event": "generator_dropped", "generator_id": "g-1", "reason": "no sign of life"},
        SENT | {"policy_version": 4, "seconds": 0.9, "members": ["g-0"], "dropped": ["g-1"]},
    ]  # fmt: skip
    found = from_log(records)
    assert [(each.version, each.generators, each.left_behind) for each in found.updates] == [
        (2, 2, ()), (3, 2, ()), (4, 1, ("g-1",)),
    ]  # fmt: skip
    assert [(each.generator, each.reason) for each in found.failures] == [
        ("", "peer closed its connection"), ("g-1", "no sign of life"),
    ]  # fmt: skip
    assert found.summary == (
        "3 updates, 3.0 MiB each, median 0.20 s, longest 0.90 s, longest stop of a generator 0.05 s; 2 failures."
    )


def test_lines_that_are_not_as_they_should_be_cost_their_numbers() -> None:
    hostile = SENT | {"seconds": "long", "num_bytes": None, "members": "all", "dropped": {"g": 1}}
    (found,) = from_log([hostile, SENT | {"policy_version": "x"}, {}]).updates
    assert found.seconds is found.num_bytes is found.generators is None and found.left_behind == ()
    assert from_log([]).summary == "" and WeightUpdates((), ()).summary == ""


def test_without_a_log_the_metrics_know_the_seconds() -> None:
    rows = [{"step": 1, "time/broadcast": 0.3, "time/pause": 0.1, "time": "t"}, {"step": 2}]
    found = from_metrics(rows)
    assert [(each.version, each.seconds, each.pause_seconds) for each in found.updates] == [(0, 0.3, 0.1)]
    assert found.summary == "1 update, median 0.30 s, longest 0.30 s, longest stop of a generator 0.10 s; no failure."

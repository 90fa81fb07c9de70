"""What a generator says of its waiting, and when silence is a fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from vcppo.common.process import watchdog
from vcppo.generator.rollout.liveness import REPORT_SECONDS, Liveness


class Scene:
    """A liveness on a clock of the test's own, and what it tells watchdog and log."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.watched: list[str] = []
        monkeypatch.setattr(watchdog, "stage", lambda name, **_: self.watched.append(name))
        monkeypatch.setattr(watchdog, "leave", lambda name: self.watched.append(f"no {name}"))
        self.liveness = Liveness(lambda: self.now)

    def look(self, seconds: float, num_in_flight: int, gate_open: bool) -> None:
        self.now += seconds
        self.liveness.look(num_in_flight, gate_open=gate_open)


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    with structlog.testing.capture_logs() as captured:
        yield captured


def test_only_rollouts_in_flight_are_watched(scene: Scene) -> None:
    scene.look(0, 0, True)
    scene.look(1, 4, True)
    scene.liveness.progress()
    scene.look(1, 3, True)  # no sign of life: nothing ended
    scene.look(1, 3, False)
    scene.liveness.progress()  # behind the gate
    scene.look(1, 3, True)
    assert scene.watched == ["no rollouts", "rollouts", "rollouts", "no rollouts", "rollouts"]


def test_a_long_wait_is_a_line_that_says_for_what(scene: Scene, lines: list[Any]) -> None:
    scene.look(0, 0, True)
    for _ in range(5):
        scene.look(REPORT_SECONDS / 2, 0, True)
    assert [(line["event"], line["seconds"]) for line in lines] == [
        ("waiting_for_prompts", REPORT_SECONDS),
        ("waiting_for_prompts", 2 * REPORT_SECONDS),
    ]
    scene.look(1, 5, False)
    scene.look(REPORT_SECONDS, 5, False)
    assert lines[-1]["event"] == "waiting_for_weights"
    assert lines[-1]["num_in_flight"] == 5


def test_work_is_no_waiting(scene: Scene, lines: list[Any]) -> None:
    for _ in range(10):
        scene.look(REPORT_SECONDS, 3, True)
    assert lines == []


def test_a_source_of_rewards_that_is_away_is_waited_for_without_the_watchdog(scene: Scene, lines: list[Any]) -> None:
    scene.look(0, 3, True)
    for away in (True, True, False):
        scene.now += REPORT_SECONDS
        scene.liveness.look(3, gate_open=True, rewards_away=away)
    assert scene.watched == ["rollouts", "no rollouts", "rollouts"]
    (line,) = lines
    assert line["event"] == "waiting_for_rewards" and line["waiting_for"] == "source of rewards"

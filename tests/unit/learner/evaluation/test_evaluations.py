"""What is done about an evaluation that is waited for, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rig.fake_run import config_of
from vcppo.common.config import VcppoConfig
from vcppo.learner.evaluation import evaluations
from vcppo.learner.evaluation.evaluations import Evaluations


class FakeEvaluator:
    """Rank 0's part without a store: answers `polls` one after the other."""

    def __init__(self, polls: Sequence[str], *, others: bool = True) -> None:
        self.polls, self.others = list(polls), others
        self.done: list[str] = []
        self.best_version: int | None = None
        self.is_best = True

    def is_due(self, version: int) -> bool:
        return version % 2 == 0

    def begin(self, version: int) -> None:
        self.done.append(f"begin {version}")

    def poll(self) -> str:
        return self.polls.pop(0)

    def has_others_than(self, generators: Sequence[str]) -> bool:
        return self.others

    def abandon(self, version: int, reason: str) -> None:
        self.done.append(f"abandon {version}: {reason}")

    def conclude(self, version: int, stall_seconds: float, keep: Callable[[int], object] | None) -> bool:
        if self.is_best and keep is not None:
            keep(version)
        self.done.append(f"conclude {version}")
        return self.is_best


class FakeExports:
    def __init__(self, *_: object) -> None:
        self.calls: list[str] = []

    def is_regular(self, version: int) -> bool:
        return version == 3

    def begin(self, version: int) -> None:
        self.calls.append(f"begin {version}")

    def keep_as_best(self, version: int) -> None:
        self.calls.append(f"keep {version}")

    def drop(self, version: int) -> None:
        self.calls.append(f"drop {version}")


class FakePublisher:
    def __init__(self, lagging: Sequence[str] = ()) -> None:
        self.lagging, self.published = list(lagging), list[int]()

    def publish(self, version: int) -> None:
        self.published.append(version)
        self.lagging = []

    def out_of_sync(self, version: int) -> list[str]:
        return self.lagging


class Made:
    def __init__(self, config: VcppoConfig, evaluator: FakeEvaluator, lagging: Sequence[str], stopping: bool) -> None:
        self.evaluator, self.publisher, self.pinned = evaluator, FakePublisher(lagging), list[int]()
        arguments: Any = (config, None, evaluator, self.publisher, lambda: stopping, self.pinned.append)
        self.evaluations = Evaluations(*arguments)

    @property
    def exports(self) -> list[str]:
        found: Any = self.evaluations._exports
        return found.calls


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Made]:
    monkeypatch.setattr(evaluations, "Exports", FakeExports)
    monkeypatch.setattr(evaluations, "broadcast_object", lambda value: value)
    config = config_of(tmp_path, "r")

    def made(evaluator: FakeEvaluator, *, lagging: Sequence[str] = (), stopping: bool = False, **settings: Any) -> Made:
        update = {"every": 2, **settings}
        changed = config.model_copy(update={"eval": config.eval.model_copy(update=update)})
        return Made(changed, evaluator, lagging, stopping)

    return made


def test_it_waits_concludes_keeps_the_best_and_pins_its_checkpoint(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["wait", "wait", "done"]))
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    assert it.evaluator.done == ["begin 2", "conclude 2"]
    assert (it.exports, it.pinned) == (["begin 2", "keep 2", "drop 2"], [2])
    it.evaluations.finish(3)  # nothing is pending
    assert it.evaluator.done == ["begin 2", "conclude 2"]


def test_what_is_no_better_is_dropped(make: Callable[..., Made]) -> None:
    evaluator = FakeEvaluator(["done"])
    evaluator.is_best = False
    it = make(evaluator)
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    assert (it.exports, it.pinned) == (["begin 2", "drop 2"], [])


def test_generators_without_the_weights_get_them_while_the_learner_has_them(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["wait", "done"], others=False), lagging=["generator-0"])
    it.evaluations.begin(2)
    it.evaluations.finish(2)
    assert it.publisher.published == [2]
    assert it.evaluator.done[-1] == "conclude 2"


def test_with_newer_weights_it_waits_for_those_that_have_the_old_ones(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["wait", "wait", "done"], others=True), lagging=["generator-1"])
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    assert (it.publisher.published, it.evaluator.done[-1]) == ([], "conclude 2")


def test_it_is_given_up_when_nobody_has_the_weights_any_more(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["wait"], others=False), lagging=["generator-0", "generator-1"])
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    (_, said) = it.evaluator.done
    assert said == "abandon 2: generator-0, generator-1 lost its weights, and the learner has newer ones"
    assert (it.publisher.published, it.exports, it.pinned) == ([], ["begin 2", "drop 2"], [])


def test_asked_to_stop_it_gives_it_up_but_not_one_that_is_there(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["wait"]), stopping=True)
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    assert it.evaluator.done[-1] == "abandon 2: the run was asked to stop"
    it = make(FakeEvaluator(["done"]), stopping=True)
    it.evaluations.begin(2)
    it.evaluations.finish(3)
    assert it.evaluator.done[-1] == "conclude 2"


def test_without_the_best_nothing_is_copied_but_regular_exports(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator(["done"]), keep_best=False)
    for version in (2, 3):
        it.evaluations.begin(version)
        it.evaluations.finish(version)
    assert (it.exports, it.pinned, it.evaluator.done) == (["begin 3"], [], ["begin 2", "conclude 2"])


def test_without_evaluations_nobody_is_asked(make: Callable[..., Made]) -> None:
    it = make(FakeEvaluator([]), every=0)
    assert not it.evaluations.is_due(2)
    it.evaluations.begin(2)
    it.evaluations.finish(2)
    assert it.evaluator.done == []

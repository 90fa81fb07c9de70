"""Which trajectory a failing step is blamed on, and when the run stops instead. Models and store are stand-ins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tests.unit.rig.learner_samples import as_rollout, mixed_batch
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.store import facts
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.engine.forward import OfActions
from vcppo.learner.rl import suspects
from vcppo.learner.rl.suspects import StepFailed, Suspects, require_finite

STEP = 7
ALL = ["p0", "p1", "p2", "p3"]


class Store:
    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def get_value(self, name: str) -> str | None:
        return self.values.get(name)

    def set_value(self, name: str, value: str) -> None:
        self.values[name] = value


class Bench:
    """`bad`: prompts whose log-probs raise (False), are NaN (True), or end the process (None)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store, self.looked_at = Store(), list[str]()
        self.rejected: dict[str, str] = {}
        self.bad: dict[str, bool | None] = {}

        def reject(faults: Mapping[str, str], reason: str) -> None:
            self.rejected |= faults

        quarantine = SimpleNamespace(reject=reject)
        rank_zero: Any = SimpleNamespace(store=self.store, collector=SimpleNamespace(quarantine=quarantine))
        config = VcppoConfig.model_validate({"model": {"path": "m"}, "run": {"name": "run"}})
        self.suspects = Suspects(config, None, None, Share(0, 1, 128), rank_zero)  # type: ignore[arg-type]
        made = mixed_batch(count=4)
        self.batch = Batch([replace(each, prompt_id=f"p{i}") for i, each in enumerate(made)], STEP - 1)
        monkeypatch.setattr(suspects, "compute_log_probs", self._log_probs)

    def _log_probs(self, policy: Any, packer: Packer, temperature: float) -> Any:
        (prompt_id,) = packer.batch.prompt_ids
        how = self.bad.get(prompt_id, ...)
        if how is None:
            raise KeyboardInterrupt  # nothing of ours catches it, as nothing catches a SIGKILL
        self.looked_at.append(prompt_id)
        if how is False:
            raise IndexError("index out of range in self")
        log_probs = np.full(packer.batch.num_actions, np.nan if how is True else -1.0, np.float32)
        return OfActions(log_probs, np.zeros_like(log_probs))

    def train(self, step: int = STEP) -> None:
        with self.suspects.watched(step, self.batch):
            pass

    def fail(self) -> None:
        with self.suspects.watched(STEP, self.batch):
            raise IndexError("index out of range in self")

    def replayed(self) -> list[str]:
        return self.suspects.without_faulty(STEP, self.batch).prompt_ids


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


def test_a_step_that_went_well_or_was_killed_once_is_not_looked_at(bench: Bench) -> None:
    assert bench.replayed() == ALL
    bench.train()  # and killed afterwards
    assert bench.replayed() == ALL
    assert bench.looked_at == []


@pytest.mark.parametrize("is_nan", [False, True])
def test_after_a_failure_the_one_that_fails_alone_is_rejected(bench: Bench, is_nan: bool) -> None:
    bench.bad = {"p2": is_nan}
    with pytest.raises(IndexError):
        bench.fail()
    bench.train(STEP - 1)  # the replay of the step before it
    assert bench.replayed() == ["p0", "p1", "p3"]
    assert bench.looked_at == ALL
    assert bench.rejected == {
        "p2": "its log-probs are not finite" if is_nan else "IndexError: index out of range in self"
    }


def test_two_deaths_without_a_word_are_looked_at_and_a_third_alone_is_the_last(bench: Bench) -> None:
    bench.train()
    bench.train()
    bench.bad = {"p0": None}
    with pytest.raises(KeyboardInterrupt):
        bench.replayed()
    assert bench.replayed() == ["p1", "p2", "p3"]
    assert bench.rejected == {"p0": "the learner ended when it was looked at alone"}


def test_where_all_fail_it_is_the_weights(bench: Bench) -> None:
    bench.bad = dict.fromkeys(ALL, True)
    with pytest.raises(IndexError):
        bench.fail()
    assert bench.replayed() == ALL
    assert bench.rejected == {}


def test_where_none_fails_alone_the_second_failure_stops_the_run_and_the_next_start_tries_anew(bench: Bench) -> None:
    with pytest.raises(IndexError):
        bench.fail()
    assert bench.replayed() == ALL
    with pytest.raises(StepFailed, match=r"step 7 failed 2 times .*: vcppo reject --run .* p0 p1 p2 p3$") as stopped:
        bench.fail()
    assert stopped.value.exit_code == EXIT_REFUSED
    with pytest.raises(IndexError):
        bench.fail()


def test_a_step_of_which_nothing_is_left_is_noted(bench: Bench) -> None:
    bench.batch = Batch(bench.batch.trajectories[:1], STEP - 1)
    bench.bad = {"p0": False}
    with pytest.raises(IndexError):
        bench.fail()
    assert bench.replayed() == []
    assert facts.emptied_steps(bench.store) == [STEP]


def test_a_rollout_of_several_conversations_is_looked_at_as_one_and_goes_as_one(bench: Bench) -> None:
    first, second, third, fourth = bench.batch.rollouts
    bench.batch = Batch([first, as_rollout(second, third), fourth], STEP - 1)
    bench.bad = {"p1": False}
    with pytest.raises(IndexError):
        bench.fail()
    assert bench.replayed() == ["p0", "p3"]
    assert bench.looked_at == ["p0", "p1", "p3"] and list(bench.rejected) == ["p1"]


def test_numbers_that_are_not_finite_name_their_trajectories(bench: Bench) -> None:
    flat = np.zeros(bench.batch.num_actions, np.float32)
    require_finite(bench.batch, {"values": flat})
    flat[bench.batch.action_cu_seqlens[3] :] = np.inf
    with pytest.raises(VcppoError, match=r"^the log-probs of 1 of 4 trajectories are not finite: \['p3'\]$"):
        require_finite(bench.batch, {"values": np.zeros_like(flat), "log-probs": flat})

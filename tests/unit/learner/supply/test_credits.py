"""The staleness bound by simulation: any completion order, any losses, both straggler policies."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.learner.supply.credits import (
    Entry,
    Ready,
    Wait,
    make_units,
    num_units_to_issue,
    select_batch,
    shrunk_groups,
    too_stale,
)


class Simulation:
    """A learner and an adversarial fleet of generators that finish, and lose, prompts in random order."""

    def __init__(
        self,
        *,
        batch: int,
        group: int,
        eta: int,
        steps: int,
        straggler: str,
        loss: float,
        seed: int,
        without_signal: float = 0.0,
    ) -> None:
        self.batch, self.group, self.eta, self.steps = batch, group, eta, steps
        self.straggler = straggler
        self.loss = loss
        self.without_signal, self.left_out_of_step = without_signal, 0
        self.kept: set[str] = set()  # finished groups that have a signal
        self.random = random.Random(seed)
        self.open: list[Entry] = []
        self.trained: list[tuple[str, int]] = []
        self.given_up: set[str] = set()
        self.issued: set[str] = set()
        self.issue_order: list[str] = []
        self.version = 0

    def issue(self) -> None:
        for group, missing in (shrunk_groups(self.open, self.group) if self.group > 1 else {}).items():
            for _ in range(missing):
                self._add(group, f"{group}-{len(self.issued)}")
        units = make_units(self.open, self.group, self.eta)
        count = num_units_to_issue(len(units), self.batch // self.group, self.eta, self.steps - self.version)
        for _ in range(count):
            group = f"g{len(self.issued)}"
            for _ in range(self.group):
                self._add(group, f"{group}-{len(self.issued)}")
        assert len(self.open) <= (self.eta + 1) * self.batch

    def _add(self, group: str, prompt_id: str) -> None:
        assert prompt_id not in self.issued
        self.issued.add(prompt_id)
        self.issue_order.append(prompt_id)
        self.open.append(Entry(prompt_id, group, self.version, buffered=False))

    def finish_one(self) -> None:
        position = self.random.choice([i for i, entry in enumerate(self.open) if not entry.buffered])
        if self.random.random() < self.loss:
            self.given_up.add(self.open.pop(position).prompt_id)
        else:
            self.open[position] = self.open[position]._replace(buffered=True)

    def leave_out(self) -> None:
        """Dynamic sampling: finished groups without signal, at most two batches of them a step."""
        for unit in make_units(self.open, self.group, self.eta):
            group = unit.entries[0].group_id
            if not unit.ready or group in self.kept or self.left_out_of_step >= 2 * self.batch // self.group:
                continue
            if self.random.random() >= self.without_signal:
                self.kept.add(group)
                continue
            self.left_out_of_step += 1
            self.given_up.update(unit.ids)
            self.open = [entry for entry in self.open if entry.group_id != group]

    def run(self) -> None:
        self.issue()
        while self.version < self.steps:
            assert too_stale(self.open, self.version, self.eta) == []
            self.leave_out()
            units = make_units(self.open, self.group, self.eta)
            decision = select_batch(
                units,
                version=self.version,
                units_per_step=self.batch // self.group,
                max_staleness=self.eta,
                straggler=self.straggler,  # type: ignore[arg-type]
            )
            if isinstance(decision, Wait):
                self.issue()
                assert any(not entry.buffered for entry in self.open), "deadlock: nothing is left to arrive"
                assert all(not e.buffered for e in self.open if e.prompt_id in decision.on)
                self.finish_one()
                continue
            self._train(decision)

    def _train(self, decision: Ready) -> None:
        assert len(decision.prompt_ids) == self.batch
        assert not set(decision.prompt_ids) & set(decision.dropped)
        by_id = {entry.prompt_id: entry for entry in self.open}
        for prompt_id in decision.prompt_ids:
            assert by_id[prompt_id].buffered
            self.trained.append((prompt_id, self.version - by_id[prompt_id].version))
        gone = {*decision.prompt_ids, *decision.dropped}
        self.given_up.update(decision.dropped)
        self.open = [entry for entry in self.open if entry.prompt_id not in gone]
        self.version += 1
        self.left_out_of_step = 0
        self.issue()


@settings(max_examples=300, deadline=None)
@given(
    num_units=st.integers(1, 6),
    group=st.integers(1, 4),
    eta=st.integers(0, 4),
    steps=st.integers(1, 12),
    straggler=st.sampled_from(["wait", "drop"]),
    loss=st.sampled_from([0.0, 0.2]),
    without_signal=st.sampled_from([0.0, 0.4, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_bounded_exactly_once_and_live(
    num_units: int, group: int, eta: int, steps: int, straggler: str, loss: float, without_signal: float, seed: int
) -> None:
    simulation = Simulation(
        batch=num_units * group, group=group, eta=eta, steps=steps, straggler=straggler, loss=loss, seed=seed,
        without_signal=without_signal,
    )  # fmt: skip
    simulation.run()
    ids = [prompt_id for prompt_id, _ in simulation.trained]
    assert len(ids) == len(set(ids)) == steps * num_units * group
    assert max(staleness for _, staleness in simulation.trained) <= eta
    assert simulation.open == []
    assert set(ids) | simulation.given_up == simulation.issued
    if straggler == "wait" and loss == 0:
        assert without_signal or set(ids) == simulation.issued
        assert ids == sorted(ids, key=simulation.issue_order.index)


def test_synchronous_waits_for_everything() -> None:
    entries = [Entry(str(i), "g", 3, buffered=i != 1) for i in range(4)]
    decision = select_batch(make_units(entries, 1, 0), version=3, units_per_step=4, max_staleness=0)
    assert decision == Wait(["1"])


def test_straggler_is_waited_for_or_dropped_when_its_deadline_has_come() -> None:
    entries = [Entry("slow", "a", 0, buffered=False), *(Entry(f"b{i}", "b", 1, buffered=True) for i in range(3))]
    units = make_units(entries, 1, 1)
    assert select_batch(units, version=1, units_per_step=2, max_staleness=1) == Wait(["slow"])
    dropped = select_batch(units, version=1, units_per_step=2, max_staleness=1, straggler="drop")
    assert dropped == Ready(["b0", "b1"], ["slow"])


def test_the_quick_do_not_overtake() -> None:
    """What is trained next must not depend on who finished first: those are the short responses."""
    entries = [Entry("slow", "a", 0, buffered=False), *(Entry(f"b{i}", "b", 0, buffered=True) for i in range(3))]
    units = make_units(entries, 1, 1)
    assert select_batch(units, version=0, units_per_step=2, max_staleness=1) == Wait(["slow"])
    overtaken = select_batch(units, version=0, units_per_step=2, max_staleness=1, straggler="drop")
    assert overtaken == Ready(["b0", "b1"], [])  # there is slack: not dropped yet


def test_need_of_a_later_deadline_counts() -> None:
    """eta = 2, U = 1: three open units leave no slack, so the newest may go first only if the oldest is dropped."""
    members = [("a", 0, False), ("b", 0, False), ("c", 1, True)]
    entries = [Entry(prompt, prompt, version, buffered) for prompt, version, buffered in members]
    units = make_units(entries, 1, 2)
    assert select_batch(units, version=1, units_per_step=1, max_staleness=2) == Wait(["a"])
    decision = select_batch(units, version=1, units_per_step=1, max_staleness=2, straggler="drop")
    assert decision == Ready(["c"], ["a"])


def test_old_weights_are_found() -> None:
    entries = [Entry("a", "a", 2, buffered=True), Entry("b", "b", 4, buffered=True)]
    assert too_stale(entries, version=4, max_staleness=1) == ["a"]


@pytest.mark.parametrize(
    ("num_open", "eta", "left", "expected"), [(0, 1, 9, 8), (5, 1, 9, 3), (9, 1, 9, 0), (0, 3, 1, 4), (0, 0, 5, 4)]
)
def test_credits(num_open: int, eta: int, left: int, expected: int) -> None:
    assert num_units_to_issue(num_open, 4, eta, left) == expected


def test_a_group_that_lost_members_is_not_ready() -> None:
    members = [("a0", "a"), ("b0", "b"), ("b1", "b")]
    entries = [Entry(prompt, group, 0, buffered=True) for prompt, group in members]
    assert shrunk_groups(entries, 2) == {"a": 1}
    assert [unit.ready for unit in make_units(entries, 2, 0)] == [False, True]

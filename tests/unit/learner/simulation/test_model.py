"""The model of a run: no prompt is lost, the bound holds, more generators help or do nothing, known sums."""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.common.records.simulated import Workload

pytest.importorskip("simpy", reason="the optional extra vcppo[simulation] is not installed")

from vcppo.learner.simulation.model import Simulation, simulate


def workload(**changes: Any) -> Workload:
    """Learner and generators about equally fast: 16 slots make 1,600 tokens/s each."""
    lengths = [random.Random(7).randrange(20, 400) for _ in range(200)]
    given = {
        "num_generators": 2, "slots": 16, "ahead": 2, "batch_size": 32, "max_staleness": 1, "lengths": lengths,
        "token_base_seconds": 0.006, "token_seconds_per_sequence": 0.00025, "learner_seconds_per_token": [0.0003],
        "broadcast_seconds": 0.1, "pause_seconds": [0.05], "store_seconds": 0.0001, "num_steps": 12,
    }  # fmt: skip
    return Workload.model_validate(given | changes)


WORKLOADS = st.builds(
    workload,
    num_generators=st.integers(1, 9),
    slots=st.integers(1, 12),
    ahead=st.integers(0, 4),
    batch_size=st.sampled_from([4, 8, 24]),
    group_size=st.sampled_from([1, 4]),
    max_staleness=st.integers(0, 3),
    straggler=st.sampled_from(["wait", "drop"]),
    lengths=st.lists(st.integers(1, 3000), min_size=1, max_size=30),
    learner_seconds_per_token=st.lists(st.floats(1e-6, 1e-2), min_size=1, max_size=4),
    pause_seconds=st.lists(st.floats(0, 5), min_size=1, max_size=3),
    slow_share=st.floats(0, 1),
    slow_factor=st.floats(1, 20),
    store_seconds=st.floats(0, 0.1),
    num_steps=st.just(8),
    warm_up_steps=st.just(2),
    seed=st.integers(0, 99),
)


class TestAnyWorkload:
    @settings(max_examples=60, deadline=None)
    @given(WORKLOADS)
    def test_every_prompt_is_somewhere_at_every_instant(self, case: Workload) -> None:
        simulation = Simulation(case)
        while not simulation.done.processed:
            simulation.env.step()
            at = simulation.ledger()
            assert at["issued"] == sum(at[name] for name in ("queued", "leased", "buffered", "trained", "expired"))
            in_hand = at["in_engines"] + at["on_the_way"]
            assert at["leased"] <= in_hand <= at["leased"] + at["expired"]
            if case.straggler == "wait":
                assert at["leased"] == in_hand
            bound = case.batch_size * (case.max_staleness + 1)
            assert at["queued"] + at["leased"] + at["buffered"] <= bound
        assert at["trained"] == case.batch_size * case.num_steps

    @settings(max_examples=60, deadline=None)
    @given(WORKLOADS)
    def test_nothing_is_older_than_the_bound_and_shares_are_whole(self, case: Workload) -> None:
        simulation = Simulation(case)
        result = simulation.run()
        assert max(simulation.staleness) <= case.max_staleness
        assert min(simulation.staleness) >= 0
        assert sum(result.staleness) == pytest.approx(1)
        learner = (result.learner_waiting, result.learner_training, result.learner_sending, result.learner_other)
        generators = (result.generators_busy, result.generators_paused, result.generators_waiting)
        for shares in (learner, generators):
            assert sum(shares) == pytest.approx(1)
            assert min(shares) >= -1e-6

    @settings(max_examples=20, deadline=None)
    @given(WORKLOADS)
    def test_the_seed_decides_everything(self, case: Workload) -> None:
        assert simulate(case) == simulate(case)


class TestKnownSums:
    @pytest.mark.parametrize("max_staleness", [0, 1, 3])
    def test_more_generators_are_never_slower(self, max_staleness: int) -> None:
        speeds = [
            simulate(workload(num_generators=count, max_staleness=max_staleness, batch_size=64)).tokens_per_second
            for count in (1, 2, 4, 8, 16, 64)
        ]
        assert all(after >= before * 0.98 for before, after in pairwise(speeds)), speeds
        assert speeds[2] > 1.2 * speeds[0]

    def test_a_slow_learner_sets_the_pace(self) -> None:
        """And generators always finish in time: what is trained is as old as it may be."""
        result = simulate(workload(num_generators=8, learner_seconds_per_token=[0.01]))
        assert result.tokens_per_second == pytest.approx(100, rel=0.01)
        assert result.staleness == [0, 1]
        assert result.learner_training > 0.98

    def test_slow_generators_set_the_pace(self) -> None:
        """One length, all slots always taken: 2 engines * 16 / (0.006 + 16 * 0.00025)."""
        result = simulate(
            workload(
                lengths=[100], batch_size=64, max_staleness=3, ahead=0, learner_seconds_per_token=[1e-6],
                broadcast_seconds=0.0, pause_seconds=[0.0], num_steps=40, store_seconds=0.0,
            )
        )  # fmt: skip
        assert result.tokens_per_second == pytest.approx(3200, rel=0.02)
        assert result.generators_busy > 0.98

    def test_synchronous_steps_take_both_after_each_other(self) -> None:
        """eta 0, a batch that fills the slots once: generating 1 s, training .96 s, weights 0.15 s, records .5 s."""
        result = simulate(workload(lengths=[100], ahead=0, max_staleness=0, store_seconds=0.0, other_seconds=0.5))
        assert result.seconds_per_step == pytest.approx(1.0 + 0.96 + 0.15 + 0.5)
        assert result.staleness == [1.0]
        assert result.generators_busy == pytest.approx(1 / 2.61)

    def test_pauses_grow_with_the_group_and_stop_everything(self) -> None:
        few, many = (
            simulate(workload(num_generators=count, batch_size=count * 32, pause_seconds_per_generator=0.05))
            for count in (2, 32)
        )
        assert (few.pause_seconds, many.pause_seconds) == pytest.approx((0.15, 1.65))

    def test_training_takes_speed_from_generators_of_the_same_machine(self) -> None:
        """Each step: 1.28 s of training, at half the pace, and the rest of 2 s of sampling."""
        case = workload(
            lengths=[100], batch_size=64, max_staleness=3, ahead=0, learner_seconds_per_token=[0.0002],
            broadcast_seconds=0.0, pause_seconds=[0.0], num_steps=40, store_seconds=0.0, lost_to_training=0.5,
        )  # fmt: skip
        assert simulate(case).seconds_per_step == pytest.approx(2.0 + 0.64, rel=0.02)

    def test_sequences_begin_with_the_new_weights_while_these_are_proved(self) -> None:
        """The same second before the update makes them older by a version."""
        case = {"batch_size": 64, "pause_seconds": [0.0], "learner_seconds_per_token": [1e-5], "num_steps": 30}
        before = simulate(workload(**case, other_seconds=1.0, broadcast_seconds=0.0))
        after = simulate(workload(**case, other_seconds=0.0, broadcast_seconds=1.0))
        assert after.seconds_per_step == pytest.approx(before.seconds_per_step, rel=0.02)
        assert after.mean_staleness < before.mean_staleness - 0.1

    def test_redis_takes_one_after_the_other(self) -> None:
        """A quarter of its time is heartbeats, so a trajectory of 50 ms takes 67."""
        result = simulate(
            workload(
                num_generators=50, heartbeat_cost_seconds=0.025, heartbeat_seconds=5, store_seconds=0.05,
                learner_seconds_per_token=[1e-6], batch_size=64, max_staleness=3,
                broadcast_seconds=0.0, pause_seconds=[0.0],
            )
        )  # fmt: skip
        assert result.trajectories_per_second == pytest.approx(15, rel=0.05)
        assert result.store_busy > 0.95

    def test_one_slow_generator_is_waited_for_in_order_of_issue(self) -> None:
        even = simulate(workload(num_generators=8, batch_size=64))
        uneven = simulate(workload(num_generators=8, batch_size=64, slow_share=0.1, slow_factor=10))
        assert uneven.tokens_per_second < 0.8 * even.tokens_per_second

    def test_checkpoints_take_the_learners_time(self) -> None:
        slow = {"learner_seconds_per_token": [0.01], "num_generators": 8, "warm_up_steps": 2}
        without, with_them = (
            simulate(workload(**slow, checkpoint_seconds=seconds, checkpoint_every=5)) for seconds in (0.0, 10.0)
        )
        assert with_them.seconds_per_step - without.seconds_per_step == pytest.approx(2.0)

"""Who is in the weight group: generators join, die, fail and come back. Real gloo and control ports, no vLLM engine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vcppo.common.config import VcppoConfig
from vcppo.common.store.run_store import Member, Superseded
from vcppo.common.transport import ControlClient, ControlServer
from vcppo.common.transport.control import CallerSuperseded
from vcppo.common.transport.generator_calls import Call
from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.control import WeightControl
from vcppo.generator.vllm_engine.gloo_engine import GlooWeightTransferEngine
from vcppo.learner.weights.broadcaster import BroadcastError, CanaryError, CanaryProbe, WeightBroadcaster

PROBE_TOKENS = np.arange(6, dtype=np.int32)


class FakeModel:
    def __init__(self) -> None:
        self.value = float("nan")
        self.refusals = 0
        self.ignored = 0  # updates that change nothing
        self.wrong_loads = 0  # updates after which the weights are not what was sent

    def load_weights(self, weights: Any) -> None:
        loaded = dict(weights)
        if self.refusals:
            self.refusals -= 1
            raise ValueError("this model refuses the weights")
        if self.ignored:
            self.ignored -= "b" in loaded
            return
        if "b" in loaded:  # called once a chunk
            self.value = float(loaded["b"][0]) + (7.0 if self.wrong_loads else 0.0)
            self.wrong_loads = max(0, self.wrong_loads - 1)


class FakeEngine:
    """What `Engine` is to `WeightControl`, around the real gloo worker engine and a fake model."""

    num_in_flight = 0
    is_dead = False

    def __init__(self) -> None:
        self.model = FakeModel()
        parallel = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
        config: Any = SimpleNamespace(parallel_config=parallel, model_config=None)
        self.worker: Any = GlooWeightTransferEngine(None, config, torch.device("cpu"), self.model)  # type: ignore[arg-type]
        self.hang = threading.Event()
        self.flips = 0  # updates of which one tensor arrives otherwise than it was sent
        self.reports: list[Any] = []  # what it says that it received, instead of the truth
        self.dies = False  # in its next update

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        await asyncio.to_thread(lambda: self.worker.init_transfer_engine(self.worker.parse_init_info(info)))

    async def update_weights(self, info: dict[str, Any]) -> None:
        if self.dies:
            self.is_dead = True
            raise RuntimeError("vLLM's engine died")
        if self.hang.is_set():
            await asyncio.Event().wait()
        await asyncio.to_thread(self.worker.update_weights, info)

    async def finish_weight_update(self, policy_version: int) -> Any:
        report = self.worker.sums.report()
        if self.flips:
            self.flips -= 1
            report["sums"][1] ^= 1
        return self.reports.pop() if self.reports else [report]

    async def canary(self, token_ids: Any, prompt_length: int) -> Any:
        return np.full(len(token_ids) - prompt_length, self.model.value, np.float32)

    async def nothing(self, *_: Any) -> None:
        return

    pause = resume = start_weight_update = shutdown_weight_transfer = nothing


async def nothing_in_flight() -> None:
    """Rollouts have no part here."""


class FakeGenerator:
    """A control port in a thread of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.engine = FakeEngine()
        self.loop = asyncio.new_event_loop()
        self.alive = True
        self.num_workers: object = 1
        started = threading.Event()
        threading.Thread(target=self._run, args=(started,), daemon=True).start()
        assert started.wait(10)

    def _run(self, started: threading.Event) -> None:
        async def serve() -> None:
            self.dismissed: list[str] = []
            self.control = WeightControl(
                self.engine,  # type: ignore[arg-type]
                self.name,
                60.0,
                limits=CallLimits(vocabulary=1000, max_tokens=1000, deadline_seconds=60.0, is_gloo=True),
                drop_in_flight=nothing_in_flight,
                end=self.dismissed.append,
            )
            self.control.loaded(0)
            self.server = server = ControlServer("127.0.0.1")
            self.endpoint = server.endpoint
            self.serving = asyncio.create_task(server.serve(self.control.handlers()))
            started.set()
            await asyncio.gather(self.serving, return_exceptions=True)

        self.loop.run_until_complete(serve())

    def die(self) -> None:
        """As a SIGKILL looks to the others: port and group connections gone, member entry still there."""
        self.loop.call_soon_threadsafe(self.serving.cancel)
        self.engine.worker.shutdown()

    @property
    def member(self) -> Member:
        version, epoch = self.control.policy_version, self.control.epoch
        return Member(self.name, "generator", self.endpoint, version, epoch, {"num_workers": self.num_workers})


class FakeStore:
    def __init__(self, incarnation: int = 1) -> None:
        self.incarnation = incarnation
        self.superseded = False
        self.generators: list[FakeGenerator] = []
        self.values: dict[str, str] = {}
        self.returned: list[str] = []  # of whom the leases were taken back

    def return_leases(self, generator_id: str) -> int:
        self.returned.append(generator_id)
        return 3

    def members(self, role: str) -> list[Member]:
        return [g.member for g in self.generators if g.alive]

    def set_value(self, name: str, value: str) -> None:
        self.values[name] = value

    def confirm(self) -> None:
        if self.superseded:
            raise Superseded("learner number 1 was superseded by learner number 2")


class Weights:
    device = torch.device("cpu")
    value = 1.0
    num_walks = 0

    def weight_metadata(self) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
        return [("a", torch.float32, (300,)), ("b", torch.float32, (300,))]

    def weight_source(self) -> Iterator[tuple[str, torch.Tensor]]:
        self.num_walks += 1
        yield "a", torch.full((300,), self.value)
        yield "b", torch.full((300,), self.value)


class Bench:
    def __init__(self, *names: str, deadline: float = 30.0, incarnation: int = 1) -> None:
        broadcast = {"deadline_seconds": deadline, "packed_buffer_mib": 1200 / 2**20}
        config = VcppoConfig.model_validate({"model": {"path": "x"}, "broadcast": broadcast})
        self.store, self.weights = FakeStore(incarnation), Weights()
        self.store.generators = [FakeGenerator(name) for name in names]
        self.broadcaster = WeightBroadcaster(config, self.store, self.weights)  # type: ignore[arg-type]

    def send(self, version: int) -> Any:
        self.weights.value = float(version)
        return self.broadcaster.broadcast(version, CanaryProbe(PROBE_TOKENS, 2, np.full(4, version, np.float32)))


@pytest.fixture
def make() -> Iterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(*names: str, **options: Any) -> Bench:
        made.append(Bench(*names, **options))
        return made[-1]

    yield make
    for bench in made:
        bench.broadcaster.close()
        for generator in bench.store.generators:
            generator.die()


def test_all_generators_get_each_version(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1", "g-2")
    for version in (1, 2, 3):
        report = bench.send(version)
        assert report.members == ("g-0", "g-1", "g-2")
        assert report.canary_difference == 0.0
        assert report.num_bytes == 2400
        assert bench.store.values == {"policy_version": str(version)}
        assert {g.control.policy_version for g in bench.store.generators} == {version}
        assert bench.broadcaster.out_of_sync(version) == []


def test_a_generator_that_joins_is_out_of_sync_until_the_next_broadcast(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    bench.send(1)
    bench.store.generators.append(FakeGenerator("g-1"))
    assert bench.broadcaster.out_of_sync(1) == ["g-1"]
    assert bench.send(1).members == ("g-0", "g-1")
    assert bench.broadcaster.out_of_sync(1) == []


def test_a_generator_that_died_is_dropped_by_name_and_soon(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.send(1)
    bench.store.generators[1].die()
    began = time.monotonic()
    report = bench.send(2)
    assert time.monotonic() - began < 15.0
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))
    assert bench.send(3).dropped == ()


def test_a_failed_update_is_repeated_for_everybody(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.store.generators[1].engine.model.refusals = 1
    report = bench.send(1)
    assert (report.members, report.dropped) == (("g-0", "g-1"), ())
    assert bench.weights.num_walks == 2
    assert bench.store.generators[0].engine.model.value == 1.0


def test_a_generator_that_always_fails_is_dropped_and_the_rest_go_on(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.store.generators[1].engine.model.refusals = 100
    report = bench.send(1)
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))
    assert bench.store.generators[1].control.policy_version == -1
    assert not bench.store.generators[1].control.gate.may_send


def test_a_generator_that_hangs_in_the_update_costs_a_deadline_and_is_dropped(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1", deadline=2.0)
    bench.send(1)
    bench.store.generators[1].engine.hang.set()
    report = bench.send(2)
    assert report.members == ("g-0",)
    assert report.dropped == ("g-1",)
    assert bench.store.returned == ["g-1"]  # its heart beats: it would renew its leases for ever


def test_without_any_generator_left_the_error_says_so(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    bench.store.generators[0].engine.model.refusals = 100
    with pytest.raises(BroadcastError, match="this model refuses the weights"):
        bench.send(1)
    assert bench.store.values == {}


def test_wrong_weights_are_a_canary_error_that_names_the_generator(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.weights.value = 5.0
    with pytest.raises(
        CanaryError, match=r"g-0: mean \|log-prob difference\| 4 nats .*; g-1: mean \|log-prob difference\| 4 nats"
    ):
        bench.broadcaster.broadcast(1, CanaryProbe(PROBE_TOKENS, 2, np.ones(4, np.float32)))
    assert bench.store.values == {}
    assert not bench.store.generators[0].control.gate.may_send
    bench.send(2)
    assert bench.store.generators[0].control.gate.may_send


def test_a_failed_canary_puts_out_that_generator_alone_and_it_comes_back(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.send(1)
    good, bad = bench.store.generators
    epochs = good.control.epoch, bad.control.epoch
    bad.engine.model.wrong_loads = 1
    report = bench.send(2)
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))
    assert good.control.gate.may_send
    assert good.control.policy_version == 2
    assert not bad.control.gate.may_send
    assert bad.control.policy_version == -1
    assert bench.broadcaster.out_of_sync(2) == ["g-1"]
    report = bench.send(2)  # what the learner does when it finds one out of sync
    assert (report.members, report.dropped) == (("g-0", "g-1"), ())
    assert bad.control.gate.may_send
    assert good.control.epoch == epochs[0]  # the others are not restarted
    assert bad.control.epoch != epochs[1]
    assert bench.broadcaster.out_of_sync(2) == []


def test_a_generator_whose_canary_fails_again_and_again_is_dismissed_by_name(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bad = bench.store.generators[1]
    bad.engine.model.wrong_loads = 100
    for version in (1, 1, 2):
        assert not bad.dismissed
        assert bench.send(version).members == ("g-0",)
    assert len(bad.dismissed) == 1
    assert "mean |log-prob difference| 7 nats" in bad.dismissed[0]
    bad.alive = False
    assert bench.send(3).members == ("g-0",)
    assert bench.broadcaster.out_of_sync(3) == []


def test_the_count_starts_anew_when_a_canary_passes(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bad = bench.store.generators[1]
    for version in range(1, 5):
        bad.engine.model.wrong_loads = 2
        for _ in range(2):
            assert bench.send(version).members == ("g-0",)
        assert bench.send(version).members == ("g-0", "g-1")
    assert not bad.dismissed


def test_an_only_generator_is_sent_the_weights_anew_before_the_run_stops(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    only = bench.store.generators[0]
    only.engine.model.wrong_loads = 2
    report = bench.send(1)
    assert report.members == ("g-0",)
    assert only.control.gate.may_send
    only.engine.model.wrong_loads = 100
    with pytest.raises(CanaryError, match=r"g-0: mean \|log-prob difference\| 7 nats"):
        bench.send(2)
    assert not only.control.gate.may_send
    assert not only.dismissed


def test_bytes_that_changed_on_the_way_are_found_and_sent_again(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bench.send(1)
    good, bad = bench.store.generators
    bad.engine.flips = 1
    report = bench.send(2)
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))
    assert bad.control.policy_version == -1
    assert bench.send(2).members == ("g-0", "g-1")
    assert good.control.policy_version == bad.control.policy_version == 2


def test_a_generator_that_goes_on_with_old_weights_is_found_after_the_smallest_step(make: Callable[..., Bench]) -> None:
    """The step is far below rounding (0.01 here): only that the answer stays the same tells."""
    bench = make("g-0", "g-1")
    bench.send(1)
    bad = bench.store.generators[1]
    bad.engine.model.ignored = 1
    bench.weights.value = 1.0001
    probe = CanaryProbe(PROBE_TOKENS, 2, np.full(4, 1.0001, np.float32))
    report = bench.broadcaster.broadcast(2, probe)
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))
    assert bench.broadcaster.broadcast(2, probe).members == ("g-0", "g-1")


def test_without_generators_the_version_is_announced_and_sent_to_whoever_joins(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    bench.send(1)
    bench.store.generators[0].die()
    report = bench.send(2)  # it is dead, but its entry is still there
    assert (report.members, report.dropped) == ((), ("g-0",))
    bench.store.generators[0].alive = False
    assert bench.send(3).members == ()
    assert bench.store.values == {"policy_version": "3"}
    bench.store.generators.append(FakeGenerator("g-1"))
    assert bench.broadcaster.out_of_sync(3) == ["g-1"]
    assert bench.send(3).members == ("g-1",)
    assert bench.weights.num_walks == 4


def test_the_only_generator_dies_in_the_middle_of_an_update(make: Callable[..., Bench]) -> None:
    bench = make("g-0", deadline=2.0)
    bench.send(1)
    only = bench.store.generators[0]
    only.engine.hang.set()
    threading.Timer(0.5, only.die).start()
    report = bench.send(2)
    assert (report.members, report.dropped) == ((), ("g-0",))
    assert bench.store.values == {"policy_version": "2"}


def test_a_generator_whose_updates_fail_again_and_again_is_dismissed_by_name(make: Callable[..., Bench]) -> None:
    bench = make("g-0", "g-1")
    bad = bench.store.generators[1]
    bad.engine.model.refusals = 1000
    for version in (1, 2, 3):
        assert not bad.dismissed
        assert bench.send(version).members == ("g-0",)
        assert bench.broadcaster.out_of_sync(version) == ["g-1"]  # it may try again
    assert len(bad.dismissed) == 1
    assert "this model refuses the weights" in bad.dismissed[0]


def test_an_only_generator_whose_engine_died_is_dropped_and_the_learner_goes_on(make: Callable[..., Bench]) -> None:
    """Its process, and its control port, are there for a heartbeat longer."""
    bench = make("g-0")
    bench.send(1)
    only = bench.store.generators[0]
    only.engine.is_dead = True
    report = bench.send(2)
    assert (report.members, report.dropped) == ((), ("g-0",))
    assert bench.store.values == {"policy_version": "2"}
    bench.store.generators = [FakeGenerator("g-0")]  # started again
    assert bench.send(2).members == ("g-0",)


def test_an_only_generator_whose_engine_dies_of_an_update_is_dropped_too(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    bench.send(1)
    bench.store.generators[0].engine.dies = True
    report = bench.send(2)
    assert (report.members, report.dropped) == ((), ("g-0",))


@pytest.mark.parametrize("num_workers", ["x", 0, -3, 10**9, 1.5, None, [1], True])
def test_a_member_with_impossible_workers_is_dropped_by_name(make: Callable[..., Bench], num_workers: object) -> None:
    """A weight group of their number would never come together, for anybody."""
    bench = make("g-0", "g-1")
    bench.store.generators[1].num_workers = num_workers
    report = bench.send(1)
    assert (report.members, report.dropped) == (("g-0",), ("g-1",))


@pytest.mark.parametrize(
    "report",
    [
        None,
        [],
        [{"sums": [np.arange(3), np.arange(3)], "names": 1, "stale": 0}],
        [{"sums": ["a", None], "names": 1, "stale": 0}],
        [{"sums": [1, 2], "names": np.arange(3), "stale": np.arange(2)}],
        [[1, 2]],
        "sums",
        {"sums": []},
    ],
)
def test_nonsense_about_what_was_received_puts_out_that_generator(make: Callable[..., Bench], report: Any) -> None:
    bench = make("g-0", "g-1")
    bench.store.generators[1].engine.reports = [report]
    sent = bench.send(1)
    assert (sent.members, sent.dropped) == (("g-0",), ("g-1",))
    assert bench.send(1).members == ("g-0", "g-1")


# A learner that was frozen, and has a successor when it wakes up


@pytest.fixture
def successor(make: Callable[..., Bench]) -> tuple[Bench, Bench]:
    """An old learner and a new one of the same two generators; the old one has sent version 1, the new one 2."""
    old, new = make("g-0", "g-1"), make(incarnation=2)
    old.send(1)
    new.store.generators = old.store.generators
    new.send(2)
    return old, new


def test_an_old_learner_is_obeyed_by_no_generator_and_ends(successor: tuple[Bench, Bench]) -> None:
    """Its store would refuse it too: this holds also where its store is another, or away."""
    old, new = successor
    with pytest.raises(Superseded, match="learner number 1 was superseded by number 2: it is not obeyed any more"):
        old.send(7)
    for generator in new.store.generators:
        assert generator.control.policy_version == 2
        assert generator.control.gate.may_send
        assert generator.engine.model.value == 2.0
    assert new.send(3).members == ("g-0", "g-1")


@pytest.mark.parametrize("call", list(Call.__subclasses__()))
def test_every_call_of_an_old_learner_is_refused(successor: tuple[Bench, Bench], call: type[Call[Any]]) -> None:
    generator = successor[1].store.generators[0]
    client = ControlClient(generator.endpoint, 1)
    with pytest.raises(CallerSuperseded, match="number 1 was superseded by number 2"):
        client.call(call.method, {}, 10.0)
    client.close()
    assert not generator.dismissed


@pytest.mark.parametrize("inside", ["pause", "update_weights", "finish_weight_update", "canary"])
def test_one_that_wakes_up_inside_a_broadcast_opens_no_gate(make: Callable[..., Bench], inside: str) -> None:
    """The generators hear of its successor while it is at this call; what it has loaded so far is never used."""
    old, new = make("g-0", "g-1"), make(incarnation=2)
    generators = new.store.generators = old.store.generators
    old.send(1)
    for generator in generators:
        original = getattr(generator.engine, inside)

        async def hears_of_it(*arguments: Any, original: Any = original, generator: Any = generator) -> Any:
            generator.server.callers.heard_of(2)  # as its heartbeat does
            return await original(*arguments)

        setattr(generator.engine, inside, hears_of_it)
    with pytest.raises(Superseded, match="not obeyed any more"):
        old.send(7)
    assert not any(generator.control.gate.may_send for generator in generators)
    assert new.send(2).members == ("g-0", "g-1")
    assert all(generator.engine.model.value == 2.0 and generator.control.gate.may_send for generator in generators)


def test_one_whose_store_refuses_it_does_not_resume_the_generators(make: Callable[..., Bench]) -> None:
    bench = make("g-0")
    bench.store.superseded = True
    with pytest.raises(Superseded):
        bench.send(1)
    assert not bench.store.generators[0].control.gate.may_send
    assert bench.store.values == {}

"""The control calls of a weight update against a fake engine: the gate, versions, and what breaks off half-way."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.call_order import CallRefused
from vcppo.generator.rollout.control import UNSYNCED, WeightControl
from vcppo.generator.rollout.weight_state import WeightGate, WeightState

TENSORS = {"names": ["w"], "dtype_names": ["float32"], "shapes": [[2, 3]], "chunks": [1]}
LIMITS = CallLimits(vocabulary=100, max_tokens=50, deadline_seconds=60.0, is_gloo=True)


class FakeEngine:
    """Records the calls; fails those named in ``failing``."""

    num_in_flight = 3
    is_dead = False

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: set[str] = set()
        self.gate = WeightGate()
        self.could_send: list[bool] = []

    async def drop_in_flight(self) -> None:
        self.calls.append("drop_in_flight")
        self.could_send.append(self.gate.may_send)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                raise RuntimeError(f"{name} is broken")
            return np.zeros(4, dtype=np.float32) if name == "canary" else None

        return call


def run(body: Callable[[FakeEngine, WeightControl, Callable[..., Awaitable[Any]]], Awaitable[None]]) -> None:
    async def main() -> None:
        engine = FakeEngine()
        control = WeightControl(
            engine,  # type: ignore[arg-type]
            "generator-0",
            silence_seconds=0.2,
            limits=LIMITS,
            drop_in_flight=engine.drop_in_flight,
            end=engine.calls.append,
        )
        engine.gate = control.gate
        handlers = control.handlers()
        await body(engine, control, lambda name, **arguments: handlers[name](**arguments))

    asyncio.run(main())


UPDATE = (("pause", {}), ("start_weight_update", {}), ("update_weights", {"update_info": TENSORS}))


def test_the_gate_opens_only_when_the_canary_has_passed() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.loaded(0)
        assert control.gate.state is WeightState.READY
        assert control.gate.may_begin
        for name, arguments in UPDATE:
            await call(name, **arguments)
            assert not control.gate.may_send
            assert not control.gate.may_begin
        await call("finish_weight_update", policy_version=1)
        assert not control.gate.may_begin
        answer = await call("canary", token_ids=np.arange(6, dtype=np.int32), prompt_length=2)
        assert answer.shape == (4,)
        assert not control.gate.may_send
        assert control.gate.may_begin  # places are filled again while the canary is looked at
        assert (await call("resume")).paused_seconds >= 0
        assert control.gate.state is WeightState.READY
        assert control.policy_version == 1
        assert engine.calls.count("pause") == engine.calls.count("resume") == 1

    run(body)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_no_canary_wakes_the_engine_inside_an_update(done: int) -> None:
    """Also right after the pause: the tensors would come to an engine that generates."""

    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.loaded(0)
        for name, arguments in UPDATE[:done]:
            await call(name, **arguments)
        with pytest.raises(CallRefused, match=r"^canary: "):
            await call("canary", token_ids=np.arange(6, dtype=np.int32), prompt_length=2)
        assert "resume" not in engine.calls

    run(body)


def test_a_broken_off_update_asks_for_a_new_one_and_does_not_resume() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.loaded(4)
        epoch = control.epoch
        engine.failing = {"update_weights"}
        await call("pause")
        await call("start_weight_update")
        with pytest.raises(RuntimeError, match="is broken"):
            await call("update_weights", update_info=TENSORS)
        assert control.policy_version == UNSYNCED
        assert not control.gate.may_begin
        assert control.epoch > epoch
        with pytest.raises(CallRefused, match="no complete weights"):
            await call("resume")
        assert "resume" not in engine.calls
        engine.failing = set()
        for name, arguments in UPDATE:
            await call(name, **arguments)
        await call("finish_weight_update", policy_version=5)
        await call("resume")
        assert control.gate.state is WeightState.READY

    run(body)


def test_rejected_weights_drop_what_is_in_flight_and_stay_paused() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.loaded(0)
        for name, arguments in UPDATE:
            await call(name, **arguments)
        await call("finish_weight_update", policy_version=1)
        await call("canary", token_ids=np.arange(6, dtype=np.int32), prompt_length=2)
        await call("abort")
        assert engine.could_send == [False]
        assert not control.gate.may_begin
        assert engine.calls[-2:] == ["pause", "drop_in_flight"]
        assert (await call("status")).policy_version == UNSYNCED

    run(body)


def test_silence_after_a_pause_asks_for_new_weights() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.loaded(2)
        watch = asyncio.create_task(control.watch_silence())
        control.changed.clear()
        await call("pause")
        async with asyncio.timeout(5.0):
            await control.changed.wait()
        assert control.policy_version == UNSYNCED
        watch.cancel()

    run(body)


def test_calls_run_one_at_a_time_but_status_answers_at_once() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow() -> None:
            engine.calls.append("slow")
            entered.set()
            await leave.wait()

        engine.pause = slow  # type: ignore[method-assign]
        pausing = asyncio.create_task(call("pause"))
        await entered.wait()
        starting = asyncio.create_task(call("start_weight_update"))
        assert (await call("status")).num_in_flight == 3
        assert "start_weight_update" not in engine.calls
        leave.set()
        await asyncio.gather(pausing, starting)
        assert engine.calls[-1] == "start_weight_update"

    run(body)


def test_a_cancelled_wait_ends_even_when_what_it_waits_for_comes_at_that_moment() -> None:
    """Else a heartbeat would go on for ever and a generator told to stop never leave (seen: killed after its grace)."""

    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.changed.clear()
        waiting = asyncio.create_task(control.wait_for_change(30.0))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        control.changed.set()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    run(body)


def test_a_wait_for_a_change_ends_with_it_or_with_its_time() -> None:
    async def body(engine: FakeEngine, control: WeightControl, call: Any) -> None:
        control.changed.clear()
        await control.wait_for_change(0.01)
        assert not control.changed.is_set()
        waiting = asyncio.create_task(control.wait_for_change(30.0))
        await asyncio.sleep(0)
        control.need_sync("a test")
        async with asyncio.timeout(5.0):
            await waiting

    run(body)

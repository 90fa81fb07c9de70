"""Control calls in any order, with any arguments: what is out of order or out of bounds changes nothing.

The engine here is stricter than vLLM: it fails the test when a call reaches it that would spoil its weights.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vcppo.common.errors import VcppoError
from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.call_order import CallRefused
from vcppo.generator.rollout.control import UNSYNCED, WeightControl
from vcppo.generator.rollout.weight_state import WeightState

GROUP = {
    "master_address": "127.0.0.1",
    "master_port": 4000,
    "rank_offset": 1,
    "world_size": 2,
    "group": "weights-1",
    "bind_host": "127.0.0.1",
    "deadline_seconds": 60.0,
}
TENSORS = {"names": ["a", "b"], "dtype_names": ["float32", "bfloat16"], "shapes": [[2, 3], []], "chunks": [1, 1]}
PROBE = {"token_ids": np.arange(6, dtype=np.int32), "prompt_length": 1, "lengths": [2, 4], "num_sampled": 1}
GOOD: dict[str, dict[str, Any]] = {
    "init_weight_transfer_engine": {"init_info": GROUP},
    "pause": {},
    "start_weight_update": {},
    "update_weights": {"update_info": TENSORS},
    "finish_weight_update": {"policy_version": 7},
    "canary": PROBE,
    "resume": {},
    "shutdown_weight_transfer_engine": {},
    "abort": {},
    "dismiss": {"reason": "a test"},
}
ODD = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64), st.floats(), st.text(max_size=9), st.binary(max_size=9),
    st.sampled_from([10**9, 2**31, -1, 0, float("nan"), float("inf"), "x" * 100_000]),
    st.sampled_from([[], {}, [[]], [2**40], ["float33"]]),
    st.lists(st.integers(-2, 2**33), max_size=4), st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip
LIMITS = CallLimits(vocabulary=50, max_tokens=5, deadline_seconds=60.0, is_gloo=True)


class Engine:
    """Weights are ``whole`` or being loaded; asserts that nothing reaches it at the wrong time."""

    num_in_flight = 0
    is_dead = False

    def __init__(self) -> None:
        self.calls = 0
        self.is_paused = self.is_loading = self.has_tensors = False
        self.fails = False

    def _hears(self, fine: bool = True) -> None:
        assert fine
        self.calls += 1
        if self.fails:
            self.fails = False
            raise RuntimeError("vLLM says no")

    async def pause(self) -> None:
        self._hears()
        self.is_paused = True

    async def resume(self) -> None:
        self._hears(self.is_paused and not self.is_loading)
        self.is_paused = False

    async def init_weight_transfer(self, info: dict[str, Any]) -> None:
        self._hears(info.keys() == GROUP.keys())

    async def start_weight_update(self) -> None:
        self._hears(self.is_paused)
        self.is_loading, self.has_tensors = True, False

    async def update_weights(self, info: dict[str, Any]) -> None:
        self._hears(self.is_paused and self.is_loading and not self.has_tensors and len(info) == 4)
        self.has_tensors = True

    async def finish_weight_update(self, policy_version: int) -> list[Any]:
        self._hears(self.is_paused and self.is_loading and self.has_tensors and policy_version >= 0)
        self.is_loading = False
        return []

    async def canary(self, token_ids: Any, prompt_length: int) -> Any:
        self._hears(not self.is_loading and len(token_ids) <= 5 and max(token_ids) < 50)
        return np.zeros(len(token_ids) - prompt_length, np.float32)

    canary_sampled = canary

    async def shutdown_weight_transfer(self) -> None:
        self._hears()


class Calls(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.engine = Engine()
        self.ended: list[str] = []

        async def drop() -> None: ...

        self.control = WeightControl(
            self.engine,  # type: ignore[arg-type]
            "generator-0",
            60.0,
            limits=LIMITS,
            drop_in_flight=drop,
            end=self.ended.append,
        )
        self.control.loaded(0)
        self.handlers = self.control.handlers()

    def teardown(self) -> None:
        self.engine.fails = False
        for name in ("pause", "start_weight_update", "update_weights", "finish_weight_update", "canary", "resume"):
            self.call(name, GOOD[name])  # whatever came before: a normal update works
        assert self.control.gate.state is WeightState.READY
        assert self.control.policy_version == 7
        self.runner.close()

    def call(self, name: str, arguments: dict[str, Any]) -> None:
        self.runner.run(self.handlers[name](**arguments))

    def refused_or_done(self, name: str, arguments: dict[str, Any]) -> None:
        before, refusal = self.state(), ""
        try:
            self.call(name, arguments)
        except (ValueError, CallRefused) as refused:
            refusal = str(refused)
        if refusal:
            assert refusal.startswith(f"{name}: ") and len(refusal) < 4000
            assert self.state() == before

    def state(self) -> tuple[Any, ...]:
        engine = (self.engine.is_paused, self.engine.is_loading, self.engine.has_tensors, self.engine.calls)
        return (*engine, self.control.gate.state, self.control.policy_version, self.control.epoch, len(self.ended))

    @rule(name=st.sampled_from(sorted(GOOD)))
    def any_call_at_any_time(self, name: str) -> None:
        self.refused_or_done(name, GOOD[name])

    @rule(name=st.sampled_from(sorted(GOOD)))
    def a_call_that_vllm_refuses(self, name: str) -> None:
        self.engine.fails = True
        with contextlib.suppress(RuntimeError, VcppoError):
            self.call(name, GOOD[name])
        self.engine.fails = False

    @rule(data=st.data(), name=st.sampled_from([name for name in sorted(GOOD) if GOOD[name]]))
    def odd_arguments(self, data: st.DataObject, name: str) -> None:
        arguments = dict(GOOD[name])
        field = data.draw(st.sampled_from(sorted(arguments)))
        odd = data.draw(ODD)
        if isinstance(arguments[field], dict) and data.draw(st.booleans()):
            odd = arguments[field] | {data.draw(st.sampled_from([*sorted(arguments[field]), "more"])): odd}
        self.refused_or_done(name, arguments | {field: odd})

    @invariant()
    def it_never_generates_with_half_loaded_weights(self) -> None:
        assert self.engine.is_paused or not self.engine.is_loading
        if self.control.policy_version == UNSYNCED:
            assert not self.control.gate.may_send


def test_a_second_pause_makes_no_whole_weights_of_half_loaded_ones() -> None:
    """A learner that starts again pauses; until its update is finished nothing may wake the engine."""
    calls = Calls()
    for begun in (["start_weight_update"], ["start_weight_update", "update_weights"]):
        for name in ("pause", *begun, "pause", "resume", "canary"):
            calls.refused_or_done(name, GOOD[name])
            calls.it_never_generates_with_half_loaded_weights()
        assert calls.engine.is_loading
    calls.teardown()


Calls.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestCalls = Calls.TestCase

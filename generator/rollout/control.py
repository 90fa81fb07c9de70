"""What the learner may ask of a generator: the control calls of a weight update.

    pause ─▶ start_weight_update ─▶ update_weights ─▶ finish_weight_update ─▶ [canary] ─▶ resume

While this runs the *gate* is closed: no finished rollout leaves. No prompt is leased or begun either while the engine
stands still. A canary has to run through the engine, so it wakes the engine, and prompts are begun again; what is
finished meanwhile stays behind the gate until `resume` says the weights are right. When `abort` says they are not,
everything in flight is thrown away (its leases returned).

An update that breaks off leaves weights half-loaded: the engine stays paused and the generator asks for a new
update by a new membership epoch with policy version -1. The same after ``broadcast.deadline_seconds`` of silence.
`dismiss` comes when a canary failed again and again: this process can't be trusted and ends.

A call that is out of this order (`vcppo.generator.rollout.call_order`), or that asks for what the engine can't take
(`vcppo.generator.rollout.call_limits`), is refused by name and changes nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import structlog

from vcppo.common.process import watchdog
from vcppo.common.records.trajectory import Float32Array
from vcppo.common.transport.generator_calls import (
    Abort,
    Call,
    Canary,
    Dismiss,
    FinishWeightUpdate,
    GeneratorStatus,
    InitWeightTransfer,
    LeaveWeightGroup,
    Pause,
    Received,
    Resume,
    Resumed,
    StartWeightUpdate,
    Status,
    UpdateWeights,
    serving,
)
from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.call_order import CallOrder
from vcppo.generator.rollout.canary_call import CanaryCall
from vcppo.generator.rollout.weight_state import WeightGate, WeightState
from vcppo.generator.vllm_engine.engine import UNSYNCED, Engine, EngineError

__all__ = ["UNSYNCED", "WeightControl"]

log = structlog.get_logger(__name__)

Handler = Callable[..., Awaitable[Any]]


class WeightControl:
    """The state of this generator's weights, and the handlers that change it.

    Args:
        limits: of the arguments of calls.
        drop_in_flight: ends all rollouts and hands their prompts back, for when the learner says the weights are wrong.
        end: stops this generator for the reason given, for when it is dismissed.

    Attributes:
        gate: the state of the weights, and the wait for it.
        epoch: raised each time this generator needs to be taken into the weight group anew.
        incarnation: of the engine: the same as long as it runs, whatever happens to its weights.
        total_paused_seconds: that the engine stood still for weights, since the process began.
    """

    def __init__(
        self,
        engine: Engine,
        generator_id: str,
        silence_seconds: float,
        *,
        limits: CallLimits,
        drop_in_flight: Callable[[], Awaitable[None]],
        end: Callable[[str], None],
    ) -> None:
        self.gate = WeightGate()
        self._version = UNSYNCED
        self.epoch = self.incarnation = time.time_ns()
        self.changed = asyncio.Event()  # something a member entry shows has changed: announce it
        self._drop_in_flight = drop_in_flight
        self._end = end
        self._engine = engine
        self._id = generator_id
        self._silence_seconds = silence_seconds
        self._limits = limits
        self._order = CallOrder()
        self._lock = asyncio.Lock()
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self.total_paused_seconds = 0.0
        self._heard = time.monotonic()
        self._busy: str | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Method name → coroutine function taking the call's arguments by name."""
        serial: dict[type[Call[Any]], Handler] = {
            InitWeightTransfer: self._init,
            Pause: self._pause,
            StartWeightUpdate: self._start,
            UpdateWeights: self._update,
            FinishWeightUpdate: self._finish,
            Canary: self._canary,
            Resume: self._resume,
            LeaveWeightGroup: self._leave,
            Abort: self._abort,
            Dismiss: self._dismiss,
        }
        return serving({Status: self._status} | {kind: self._one_at_a_time(kind, do) for kind, do in serial.items()})

    @property
    def policy_version(self) -> int:
        """Of the weights in the engine; -1 while it has none that are whole."""
        return UNSYNCED if self.gate.state is WeightState.UNSET else self._version

    def loaded(self, policy_version: int) -> None:
        """The engine's weights are those of ``policy_version``, and right: open the gate."""
        self._version = policy_version
        self.changed.set()
        self.gate.enter(WeightState.READY)

    def need_sync(self, reason: str) -> None:
        """Close the gate until the learner has sent weights; a new epoch makes it take this generator in anew."""
        log.warning("weights_needed", reason=reason, was_version=self.policy_version)
        self.gate.enter(WeightState.UNSET)
        self.epoch = max(time.time_ns(), self.epoch + 1)
        self.changed.set()

    async def wait_for_change(self, seconds: float) -> None:
        """Until `changed` is set, or the time is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.changed.wait()

    async def watch_silence(self) -> None:
        """For ever: a learner that pauses us and falls silent must not keep our prompts. Ends by cancellation."""
        while True:
            await asyncio.sleep(self._silence_seconds / 4)
            silent = time.monotonic() - self._heard
            is_paused = self.gate.state in (WeightState.UPDATING, WeightState.UNPROVEN)
            if is_paused and silent > self._silence_seconds:
                self.need_sync(f"paused, and no word from the learner for {silent:.0f} s")

    def _one_at_a_time(self, kind: type[Call[Any]], do: Handler) -> Handler:
        name = kind.method

        async def handler(call: Call[Any]) -> Any:
            async with self._lock:  # a call of a broken-off update may still be running
                self._limits.check(call)
                self._order.check(call, self.gate.state)
                self._heard, self._busy = time.monotonic(), name
                watchdog.stage(name, loop="control", waiting_for=["vLLM"])
                try:
                    answer = await do(call)
                    self._order.done(call)
                    return answer
                except Exception as error:
                    if kind in (StartWeightUpdate, UpdateWeights, FinishWeightUpdate):
                        self._order.broke()
                        self.need_sync(f"{name} failed: {error}")
                    raise
                finally:
                    self._busy = None
                    watchdog.leave("control")

        return handler

    async def _status(self, call: Status) -> GeneratorStatus:
        if self._engine.is_dead:  # the process ends with its next heartbeat
            raise EngineError("vLLM's engine died")
        return GeneratorStatus(
            generator_id=self._id,
            policy_version=self.policy_version,
            epoch=self.epoch,
            paused=not self.gate.may_send,
            num_in_flight=self._engine.num_in_flight,
            busy=self._busy,
        )

    async def _init(self, call: InitWeightTransfer) -> None:
        await self._engine.init_weight_transfer(call.init_info)

    async def _pause(self, call: Pause) -> None:
        if self.gate.state is not WeightState.UNSET:
            self.gate.enter(WeightState.UPDATING)
        began = time.monotonic()
        if self._paused_at is None:
            await self._engine.pause()
            self._paused_at = began

    async def _start(self, call: StartWeightUpdate) -> None:
        await self._engine.start_weight_update()

    async def _update(self, call: UpdateWeights) -> None:
        await self._engine.update_weights(call.update_info)

    async def _finish(self, call: FinishWeightUpdate) -> Received:
        received = await self._engine.finish_weight_update(call.policy_version)
        self._version = call.policy_version
        self.gate.enter(WeightState.UPDATING)  # from UNSET, where an update was awaited
        return Received(received)

    async def _leave(self, call: LeaveWeightGroup) -> None:
        await self._engine.shutdown_weight_transfer()

    async def _canary(self, call: Canary) -> Float32Array:
        """Log-probs at temperature 1 of the sequences' tokens after the prompt, then the sampled ones.

        Raises EngineError when vLLM refuses.
        """
        wanted = CanaryCall.of_call(call)
        await self._wake()
        scores = [self._engine.canary(sequence, wanted.prompt_length) for sequence in wanted.sequences]
        if wanted.num_sampled:
            first = wanted.sequences[0]
            scores.append(self._engine.canary_sampled(first, len(first) - wanted.num_sampled))
        return np.concatenate(await asyncio.gather(*scores))

    async def _resume(self, call: Resume) -> Resumed:
        await self._wake()
        self.loaded(self._version)
        return Resumed(self._paused_seconds)

    async def _wake(self) -> None:
        if self._paused_at is not None:
            await self._engine.resume()
            self._paused_seconds = time.monotonic() - self._paused_at
            self._paused_at = None
            self.total_paused_seconds += self._paused_seconds
        if self.gate.state is WeightState.UPDATING:
            self.gate.enter(WeightState.UNPROVEN)

    async def _abort(self, call: Abort) -> None:
        """The weights are wrong: drop everything in flight and wait, paused, for better ones."""
        self.need_sync("the learner says that the weights are wrong")
        await self._pause(Pause())
        self._order.done(Pause())
        await self._drop_in_flight()

    async def _dismiss(self, call: Dismiss) -> None:
        self._end(call.reason)

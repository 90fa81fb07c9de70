"""What the learner may ask of a generator: the control calls of a weight update.

    pause ─▶ start_weight_update ─▶ update_weights ─▶ finish_weight_update ─▶ [canary] ─▶ resume

While this runs the *gate* is closed: no finished rollout leaves. No prompt is leased or begun either while the engine
stands still. A canary has to run through the engine, so it wakes the engine, and prompts are begun again; what is
finished meanwhile stays behind the gate until `resume` says the weights are right. When `abort` says they are not,
everything in flight is thrown away (its leases returned).

An update that breaks off leaves weights half-loaded: the engine stays paused and the generator asks for a new
update by a new membership epoch with policy version -1. The same after ``broadcast.deadline_seconds`` of silence.
`dismiss` comes when a canary failed again and again: this process can't be trusted and ends.
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
from vcppo.generator.rollout.canary_call import CanaryCall
from vcppo.generator.vllm_engine.engine import UNSYNCED, Engine

__all__ = ["UNSYNCED", "WeightControl"]

log = structlog.get_logger(__name__)

Handler = Callable[..., Awaitable[Any]]


class WeightControl:
    """The state of this generator's weights, and the handlers that change it.

    Attributes:
        gate: set while finished rollouts may be sent: the weights in the engine are known to be right.
        running: set while prompts may be leased and begun: the weights are whole and the engine is not paused.
        policy_version: of the weights in the engine; -1: unknown or half-loaded, waiting for an update.
        epoch: raised each time this generator needs to be taken into the weight group anew.
        incarnation: of the engine: the same as long as it runs, whatever happens to its weights.
        total_paused_seconds: that the engine stood still for weights, since the process began.
    """

    def __init__(self, engine: Engine, generator_id: str, silence_seconds: float) -> None:
        self.gate = asyncio.Event()
        self.running = asyncio.Event()
        self.policy_version = UNSYNCED
        self.epoch = self.incarnation = time.time_ns()
        self.changed = asyncio.Event()  # something a member entry shows has changed: announce it
        self.end: Callable[[str], None] | None = None  # the worker's, for when this generator is dismissed
        self.drop_in_flight: Callable[[], Awaitable[None]] | None = None  # the worker's, for when the canary failed
        self._engine = engine
        self._id = generator_id
        self._silence_seconds = silence_seconds
        self._lock = asyncio.Lock()
        self._paused_at: float | None = None
        self._paused_seconds = 0.0
        self.total_paused_seconds = 0.0
        self._heard = time.monotonic()
        self._busy: str | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Method name → coroutine function taking the call's arguments by name."""
        serial: dict[str, Handler] = {
            "init_weight_transfer_engine": self._init,
            "pause": self._pause,
            "start_weight_update": self._start,
            "update_weights": self._update,
            "finish_weight_update": self._finish,
            "canary": self._canary,
            "resume": self._resume,
            "shutdown_weight_transfer_engine": self._engine.shutdown_weight_transfer,
            "abort": self._abort,
            "dismiss": self._dismiss,
        }
        handlers: dict[str, Handler] = {"status": self._status}
        return handlers | {name: self._one_at_a_time(name, call) for name, call in serial.items()}

    def loaded(self, policy_version: int) -> None:
        """The engine's weights are those of ``policy_version``, and right: open the gate."""
        self.policy_version = policy_version
        self.changed.set()
        self.running.set()
        self.gate.set()

    def need_sync(self, reason: str) -> None:
        """Close the gate until the learner has sent weights; a new epoch makes it take this generator in anew."""
        log.warning("weights_needed", reason=reason, was_version=self.policy_version)
        self._close()
        self.policy_version = UNSYNCED
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
            if not self.gate.is_set() and self.policy_version != UNSYNCED and silent > self._silence_seconds:
                self.need_sync(f"paused, and no word from the learner for {silent:.0f} s")

    def _one_at_a_time(self, name: str, call: Handler) -> Handler:
        async def handler(**arguments: Any) -> Any:
            async with self._lock:  # a call of a broken-off update may still be running
                self._heard, self._busy = time.monotonic(), name
                watchdog.stage(name, loop="control", waiting_for=["vLLM"])
                try:
                    return await call(**arguments)
                except Exception as error:
                    if name in ("start_weight_update", "update_weights", "finish_weight_update"):
                        self.need_sync(f"{name} failed: {error}")
                    raise
                finally:
                    self._busy = None
                    watchdog.leave("control")

        return handler

    async def _status(self) -> dict[str, Any]:
        return {
            "generator_id": self._id,
            "policy_version": self.policy_version,
            "epoch": self.epoch,
            "paused": not self.gate.is_set(),
            "num_in_flight": self._engine.num_in_flight,
            "busy": self._busy,
        }

    async def _init(self, init_info: dict[str, Any]) -> None:
        await self._engine.init_weight_transfer(init_info)

    async def _pause(self) -> None:
        self._close()
        began = time.monotonic()
        if self._paused_at is None:
            await self._engine.pause()
            self._paused_at = began

    async def _start(self) -> None:
        await self._engine.start_weight_update()

    async def _update(self, update_info: dict[str, Any]) -> None:
        await self._engine.update_weights(update_info)

    async def _finish(self, policy_version: int) -> dict[str, Any]:
        received = await self._engine.finish_weight_update(policy_version)
        self.policy_version = policy_version
        return {"received": received}

    async def _canary(
        self, token_ids: Any, prompt_length: Any, lengths: Any = None, num_sampled: Any = 0
    ) -> Float32Array:
        """Log-probs at temperature 1 of the sequences' tokens after the prompt, then the sampled ones.

        Raises ValueError, before the engine hears of it, on a call that is none, and EngineError when it refuses.
        """
        call = CanaryCall.of(token_ids, prompt_length, lengths, num_sampled)
        await self._wake()
        scores = [self._engine.canary(sequence, call.prompt_length) for sequence in call.sequences]
        if call.num_sampled:
            first = call.sequences[0]
            scores.append(self._engine.canary_sampled(first, len(first) - call.num_sampled))
        return np.concatenate(await asyncio.gather(*scores))

    async def _resume(self) -> dict[str, Any]:
        if self.policy_version == UNSYNCED:
            raise RuntimeError(f"{self._id} has no complete weights: send an update before resuming")
        await self._wake()
        self.loaded(self.policy_version)
        return {"paused_seconds": self._paused_seconds}

    async def _wake(self) -> None:
        if self._paused_at is not None:
            await self._engine.resume()
            self._paused_seconds = time.monotonic() - self._paused_at
            self._paused_at = None
            self.total_paused_seconds += self._paused_seconds
        if self.policy_version != UNSYNCED:
            self.running.set()

    def _close(self) -> None:
        self.running.clear()
        self.gate.clear()

    async def _abort(self) -> None:
        """The weights are wrong: drop everything in flight and wait, paused, for better ones."""
        self.need_sync("the learner says that the weights are wrong")
        await self._pause()
        if self.drop_in_flight is not None:
            await self.drop_in_flight()

    async def _dismiss(self, reason: str) -> None:
        if self.end is not None:
            self.end(reason)

"""Which control call may come when: the order of an update, kept by refusing what is out of it.

    pause ─▶ start_weight_update ─▶ update_weights ─▶ finish_weight_update ─▶ [canary] ─▶ resume

A call that is refused here has reached nothing: weights, engine and gate are as they were. `pause` begins an update
anew wherever the last one broke off; a learner that was started again does that.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from vcppo.common.errors import VcppoError
from vcppo.common.transport.generator_calls import (
    Call,
    Canary,
    FinishWeightUpdate,
    Pause,
    Resume,
    StartWeightUpdate,
    UpdateWeights,
)
from vcppo.generator.rollout.weight_state import WeightState


class CallRefused(VcppoError):
    """The call may not come now; the text begins with its name and says what must come before."""


class Step(StrEnum):
    """How far an update has come."""

    NONE = "no update is under way"
    PAUSED = "paused"
    STARTED = "an update has been started"
    RECEIVED = "all tensors have been received"
    FINISHED = "an update is finished"
    BROKEN = "an update broke off"


_AFTER: dict[type[Call[Any]], Step] = {
    Pause: Step.PAUSED,
    StartWeightUpdate: Step.STARTED,
    UpdateWeights: Step.RECEIVED,
    FinishWeightUpdate: Step.FINISHED,
    Resume: Step.NONE,
}
_ONLY_AFTER: dict[type[Call[Any]], tuple[Step, str]] = {
    StartWeightUpdate: (Step.PAUSED, Pause.method),
    UpdateWeights: (Step.STARTED, StartWeightUpdate.method),
    FinishWeightUpdate: (Step.RECEIVED, UpdateWeights.method),
}
_HALF_LOADED = (Step.STARTED, Step.RECEIVED)
# A canary wakes the engine. Right after a pause that would leave it awake for the tensors that are to come.
_NOT_AFTER: dict[type[Call[Any]], tuple[Step, ...]] = {Canary: (Step.PAUSED, *_HALF_LOADED), Resume: _HALF_LOADED}


class CallOrder:
    """Remembers how far the update is, and whether one was begun and none finished since, whatever came between."""

    def __init__(self) -> None:
        self.step = Step.NONE
        self._is_half_loaded = False

    def check(self, call: Call[Any], weights: WeightState) -> None:
        """Let `call` pass. Raises CallRefused when it may not come now.

        Args:
            weights: what may be done with the weights there are.
        """
        kind = type(call)
        if kind in _ONLY_AFTER and self.step is not _ONLY_AFTER[kind][0]:
            raise CallRefused(f"{kind.method}: {self.step}: call {_ONLY_AFTER[kind][1]} before it")
        if kind not in _NOT_AFTER:
            return
        if self.step in _NOT_AFTER[kind]:
            raise CallRefused(f"{kind.method}: {self.step}: call {FinishWeightUpdate.method} before it")
        if weights is WeightState.UNSET:
            raise CallRefused(f"{kind.method}: there are no complete weights: send an update before it")
        if self._is_half_loaded:
            raise CallRefused(f"{kind.method}: an update was begun and never finished: send one before it")
        if kind is Resume and weights is WeightState.READY:
            raise CallRefused(f"{kind.method}: nothing is paused")

    def done(self, call: Call[Any]) -> None:
        """`call` has succeeded."""
        self.step = _AFTER.get(type(call), self.step)
        if self.step in (Step.STARTED, Step.FINISHED):
            self._is_half_loaded = self.step is Step.STARTED

    def broke(self) -> None:
        """A call of an update failed in the engine: the update begins anew, with a pause."""
        self.step = Step.BROKEN

"""What may happen with the weights a generator has: one state, and those who wait for it."""

from __future__ import annotations

import asyncio
from enum import StrEnum


class WeightState(StrEnum):
    """In the order of an update; each later state allows more."""

    UNSET = "unset"
    """No weights that are whole: at the start, or after an update that broke off. Waits for an update."""
    UPDATING = "updating"
    """An update is under way. The engine stands still; nothing is leased, begun or sent."""
    UNPROVEN = "unproven"
    """The weights are whole and the engine runs, for the canary and for new prompts. What is finished is kept back."""
    READY = "ready"
    """The learner has said that the weights are right: finished rollouts are sent."""


class WeightGate:
    """Holds the state and lets through who waits for it. Starts `UNSET`; used in one event loop."""

    def __init__(self) -> None:
        self.state = WeightState.UNSET
        self._may_begin = asyncio.Event()
        self._may_send = asyncio.Event()

    def enter(self, state: WeightState) -> None:
        """From now on this is the state; wakes those who waited for it."""
        self.state = state
        for event, allowed in ((self._may_begin, self.may_begin), (self._may_send, self.may_send)):
            if allowed:
                event.set()
            else:
                event.clear()

    @property
    def may_begin(self) -> bool:
        """Prompts may be leased and begun."""
        return self.state in (WeightState.UNPROVEN, WeightState.READY)

    @property
    def may_send(self) -> bool:
        """Finished rollouts may leave."""
        return self.state is WeightState.READY

    async def until_may_begin(self) -> None:
        """Return at once, or when prompts may be begun. No deadline of its own: `watch_silence` ends a long pause."""
        await self._may_begin.wait()

    async def until_may_send(self) -> None:
        """Return at once, or when finished rollouts may leave."""
        await self._may_send.wait()

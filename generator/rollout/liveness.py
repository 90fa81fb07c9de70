"""What a generator is waiting for: the watchdog's signs of life, and a log line when it has waited long.

busy, gate open      rollouts must end one after the other: silence is a fault (the watchdog's limit)
gate closed          it waits for weights; that is the learner's to end, however long it takes
rewards away         responses wait for a source of rewards, with a patience of their own
nothing in flight    it waits for prompts; so too
"""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from vcppo.common.process import watchdog

log = structlog.get_logger(__name__)

REPORT_SECONDS = 30.0
_LOOP = "rollouts"


class Liveness:
    """Tell it when a rollout ends (`progress`) and what there is at every heartbeat (`look`)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._state = ""
        self._since = self._reported_at = clock()

    def progress(self) -> None:
        """A rollout has ended."""
        if self._state == _LOOP:
            watchdog.stage(_LOOP, loop=_LOOP, waiting_for=["vLLM", "verifier"])

    def look(self, num_in_flight: int, *, gate_open: bool, rewards_away: bool = False) -> None:
        """What is being waited for now."""
        state = "weights" if not gate_open else _LOOP if num_in_flight else "prompts"
        if gate_open and rewards_away:
            state = "rewards"
        if state != self._state:
            self._state, self._since = state, self._clock()
            self._reported_at = self._since
            if state == _LOOP:
                watchdog.stage(_LOOP, loop=_LOOP, waiting_for=["vLLM", "verifier"])
            else:
                watchdog.leave(_LOOP)
        elif state != _LOOP and self._clock() - self._reported_at >= REPORT_SECONDS:
            self._reported_at = self._clock()
            seconds = round(self._clock() - self._since, 1)
            whom = "source of rewards" if state == "rewards" else "learner"
            log.info(f"waiting_for_{state}", seconds=seconds, waiting_for=whom, num_in_flight=num_in_flight)

    def end(self) -> None:
        """The worker is leaving."""
        watchdog.leave(_LOOP)

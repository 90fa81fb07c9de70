"""A generator of the simulation: sequences that all grow at one speed, which depends on how many there are. Pure.

Sequences are kept by the number of tokens that the engine's counter will show when they are done. So a change of speed
costs nothing for each sequence.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

State = Literal["queued", "leased", "buffered", "trained", "expired"]


@dataclass(eq=False, slots=True)
class SimulatedPrompt:
    """One prompt and its response.

    Attributes:
        number: in order of issue.
        issue_version: the learner's version when it was issued.
        length: of its response, tokens.
        start_version: of the weights that its first token is from; None before.
    """

    number: int
    group: int
    issue_version: int
    length: int
    state: State = "queued"
    start_version: int | None = None

    @property
    def id(self) -> str:
        """As in a prompt's record."""
        return str(self.number)


@dataclass(eq=False, slots=True)
class Engine:
    """One generator.

    Attributes:
        slots, ahead: sequences at once; prompts leased beyond these.
        base, per_sequence: with n sequences, each gets its next token after base + n * per_sequence seconds.
        pace: share of its speed that it has now.
        busy_seconds: sequences times seconds, summed, without pauses.
        event: number of the last change; what was planned before it does not happen.
    """

    slots: int
    ahead: int
    base: float
    per_sequence: float
    running: list[tuple[float, int, SimulatedPrompt]] = field(default_factory=list)
    waiting: deque[SimulatedPrompt] = field(default_factory=deque)
    is_paused: bool = False
    pace: float = 1.0
    busy_seconds: float = 0.0
    event: int = 0
    _tokens: float = 0.0  # of each sequence that was there from the beginning
    _now: float = 0.0

    @property
    def wanted(self) -> int:
        """How many prompts it would lease now: as `RolloutWorker`, not for half of what it may hold ahead."""
        free = self.slots + self.ahead - len(self.running) - len(self.waiting)
        return 0 if self.is_paused or free <= self.ahead // 2 else free

    def until_next(self) -> float | None:
        """Seconds from now to the next response's end, if nothing changes; None: never."""
        if self.is_paused or not self.running:
            return None
        return max(0.0, self.running[0][0] - self._tokens) * self._seconds_per_token()

    def advance(self, now: float) -> None:
        """Everything up to `now`; before each change."""
        if not self.is_paused and self.running:
            seconds = now - self._now
            self._tokens += seconds / self._seconds_per_token()
            self.busy_seconds += seconds * len(self.running)
        self._now = now

    def begin(self, version: int) -> None:
        """Fill free slots, with weights of `version`."""
        while self.waiting and len(self.running) < self.slots and not self.is_paused:
            prompt = self.waiting.popleft()
            prompt.start_version = version
            heapq.heappush(self.running, (self._tokens + prompt.length, prompt.number, prompt))

    def finished(self) -> list[SimulatedPrompt]:
        """Take out what is done by now. At least one is: call it when `until_next` has passed."""
        ended = [heapq.heappop(self.running)]
        self._tokens = max(self._tokens, ended[0][0])  # no rounding may leave it a little short
        while self.running and self.running[0][0] <= self._tokens:
            ended.append(heapq.heappop(self.running))
        return [prompt for _, _, prompt in ended]

    def _seconds_per_token(self) -> float:
        return (self.base + self.per_sequence * len(self.running)) / self.pace

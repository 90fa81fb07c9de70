"""Whether a source of rewards is asked: a circuit breaker. Pure; the clock is the caller's.

closed ──▶ open             after `limit` failed requests in a row
open ──▶ half open          `seconds` later: one request, the probe, may go
half open ──▶ closed        any request succeeds
half open ──▶ open          the probe fails
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum


class BreakerState(Enum):
    """What may be sent: everything, nothing, one probe."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True)
class Breaker:
    """One state of it; each event gives the next.

    Attributes:
        limit: failures in a row that open it.
        seconds: from a failure to the next probe.
        failures: in a row, so far.
        failing_since: when the first of them was seen; None: the last request succeeded.
        opened_at: when it opened, or its last probe failed.
        probing: a probe is under way.
    """

    limit: int
    seconds: float
    failures: int = 0
    failing_since: float | None = None
    opened_at: float | None = None
    probing: bool = False

    def state(self, now: float) -> BreakerState:
        """At this time."""
        if self.opened_at is None:
            return BreakerState.CLOSED
        return BreakerState.OPEN if now < self.opened_at + self.seconds else BreakerState.HALF_OPEN

    def may_send(self, now: float) -> bool:
        """Whether one more request may go."""
        state = self.state(now)
        return state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and not self.probing)

    def sent(self, now: float) -> Breaker:
        """A request goes that `may_send` let through; where it is half open that is the probe."""
        return self if self.state(now) is BreakerState.CLOSED else replace(self, probing=True)

    def succeeded(self) -> Breaker:
        """A request has been answered, whenever it was sent: the source is there."""
        return Breaker(self.limit, self.seconds)

    def failed(self, now: float, *, probe: bool) -> Breaker:
        """A request failed. Late failures of requests sent before it opened don't keep it open for longer."""
        since = now if self.failing_since is None else self.failing_since
        after = replace(self, failures=self.failures + 1, failing_since=since)
        if self.opened_at is None:
            return replace(after, opened_at=now) if after.failures >= self.limit else after
        return replace(after, opened_at=now, probing=False) if probe else after

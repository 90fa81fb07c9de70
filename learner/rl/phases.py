"""Where a step's time goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch.profiler import record_function

from vcppo.common.process import watchdog


class Phases:
    """Seconds by phase, from when this was made: of one step, the publishing of the version before it included."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the time spent in it; the watchdog hears the name."""
        started = time.monotonic()
        watchdog.stage(name)
        try:
            with record_function(name):  # a band in the trace of learner.profile_steps
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def finish(self) -> dict[str, float]:
        """All of them, and ``step``: seconds since the start."""
        return {**self.seconds, "step": time.monotonic() - self._started}

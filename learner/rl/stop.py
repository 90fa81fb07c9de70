"""A polite end: while a stage runs, SIGTERM or SIGINT is remembered and acted on at the next step boundary."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import structlog

log = structlog.get_logger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """Call it to ask whether to stop. Rank 0's word counts (the loop shares it), so ranks stop together."""

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Outside of it a signal ends the process at once, which is as safe: then there is nothing to save.

        A second signal always does.
        """
        before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """128 + signal: 143 for SIGTERM, 130 for Ctrl-C. The run is not finished, but can be resumed."""
        return 128 + (self.signal_number or signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        for handled in _SIGNALS:
            signal.signal(handled, signal.SIG_DFL)
        log.info("stop_requested", signal=signal.Signals(number).name, remedy="a second one stops at once")

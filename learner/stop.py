"""A polite end: SIGTERM or SIGINT is remembered, and acted on at the next step boundary."""

from __future__ import annotations

import signal
from types import FrameType

import structlog

log = structlog.get_logger(__name__)


class StopRequest:
    """Call it to ask whether to stop. A second signal ends the process as it would by default.

    Rank 0's word counts (the loop shares it), so ranks stop together.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None

    def __call__(self) -> bool:
        return self.signal_number is not None

    def install(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._remember)
        return self

    @property
    def exit_code(self) -> int:
        """128 + signal: 143 for SIGTERM, 130 for Ctrl-C. The run is not finished, but can be resumed."""
        return 128 + (self.signal_number or signal.SIGTERM)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.signal_number = number
        signal.signal(number, signal.SIG_DFL)
        log.info("stop_requested", signal=signal.Signals(number).name, remedy="a second one stops at once")

"""The recipe's task with a verifier that can be made to hang: what `hang verifier` needs inside the verifier.

    task: {name: "vcppo.deploy.chaos.faults.hanging_task:HangingChain", options: {hang_flag: FILE, …}}

When FILE appears, one verifier takes it away, starts a grandchild that leaves its session and closes every pipe, writes
down both, and never answers. Otherwise it is `chain_arithmetic`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from vcppo.common.files.whole_file import write_whole
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks import Verdict
from vcppo.common.tasks.chain_arithmetic import ChainArithmetic

NAME = "vcppo.deploy.chaos.faults.hanging_task:HangingChain"
FLAG_OPTION = "hang_flag"
_HANG_SECONDS = 3600.0


class HangingChain(ChainArithmetic):
    """`ChainArithmetic`, but for the flag."""

    def __init__(self, hang_flag: str, **options: object) -> None:
        super().__init__(**options)
        self._flag = Path(hang_flag)

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """As the task does, or never."""
        try:
            self._flag.unlink()  # so one verifier only
        except FileNotFoundError:
            return super().verify(answer, response, finish_reason)
        pids = {"verifier": os.getpid(), "grandchild": _hide()}
        write_whole(self._flag.with_suffix(".json"), json.dumps({**pids, "time": time.time()}))
        time.sleep(_HANG_SECONDS)
        raise AssertionError("nobody ended this verifier")


def _hide() -> int:
    """Pid of a grandchild in a session of its own, its parent dead, without any pipe of ours."""
    reader, writer = os.pipe()
    if child := os.fork():
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            os.close(writer)
            return int(pipe.readline())
    os.setsid()
    if os.fork():
        os._exit(0)
    os.write(writer, b"%d\n" % os.getpid())
    os.closerange(0, os.sysconf("SC_OPEN_MAX"))
    time.sleep(_HANG_SECONDS)
    os._exit(0)

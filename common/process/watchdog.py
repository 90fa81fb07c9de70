"""A thread that notices when a loop of its process is stuck, says on whom, and ends the process for a restart.

    loop:      stage("broadcast", waiting_for=["generator-1"]) ─▶ stage("claim") ─▶ …    (each call: a sign of life)
    watchdog:  every second: is a stage older than its limit?  half of it ─▶ a warning, all of it ─▶ stacks, exit 4

Time in which the watchdog itself did not run (the process was stopped, the machine slept) counts for nobody. It is the
last net: waits have deadlines of their own, which come sooner and cost less. Not seen is native code that holds the
interpreter's lock for ever: then the watchdog does not run either.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import structlog

from vcppo.common.config import WatchdogConfig
from vcppo.common.errors import EXIT_STUCK

log = structlog.get_logger(__name__)

TICK_SECONDS = 1.0
_SLACK = 2.0  # a tick this many times late: we did not run, so nobody is to blame for the time


@dataclass
class _Stage:
    name: str
    waiting_for: Sequence[str]
    since: float
    limit: float
    warned: bool = False


class Watchdog:
    """The judgement, without thread or clock: `tick` says which loop is stuck.

    Args:
        limits: stage -> seconds; others have `default_seconds`.
    """

    def __init__(self, default_seconds: float, limits: Mapping[str, float], now: float) -> None:
        self._default, self._limits = default_seconds, limits
        self._loops: dict[str, _Stage] = {}
        self._lock = threading.Lock()
        self._ticked_at = now

    def enter(self, loop: str, name: str, waiting_for: Sequence[str], now: float, *, endless: bool = False) -> None:
        """A loop is at this stage from now on. `endless`: it may wait there for ever (an idle generator, say)."""
        limit = float("inf") if endless else self._limits.get(name, self._default)
        with self._lock:
            self._loops[loop] = _Stage(name, waiting_for, now, limit)

    def leave(self, loop: str) -> None:
        """The loop has ended."""
        with self._lock:
            self._loops.pop(loop, None)

    def tick(self, now: float) -> dict[str, object] | None:
        """What is stuck, as fields for a log line; None: nothing. Call it every `TICK_SECONDS`."""
        with self._lock:
            gap, self._ticked_at = now - self._ticked_at, now
            for loop, stage in self._loops.items():
                if gap > _SLACK * TICK_SECONDS:
                    stage.since = min(now, stage.since + gap)
                seconds = now - stage.since
                facts: dict[str, object] = {
                    "loop": loop, "stage": stage.name, "seconds": round(seconds, 1),
                    "waiting_for": list(stage.waiting_for), "limit": stage.limit,
                }  # fmt: skip
                if seconds > stage.limit:
                    return facts
                if seconds > stage.limit / 2 and not stage.warned:
                    stage.warned = True
                    log.warning("still_in_stage", **facts)
        return None


class _Thread(threading.Thread):
    def __init__(self, watchdog: Watchdog, on_stuck: Callable[[dict[str, object]], None]) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._watchdog, self._on_stuck = watchdog, on_stuck
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(TICK_SECONDS):
            if (stuck := self._watchdog.tick(time.monotonic())) is not None:
                self._on_stuck(stuck)
                return


_watchdog: Watchdog | None = None
_thread: _Thread | None = None


def start(config: WatchdogConfig, stacks: Path) -> None:
    """Watch this process from now on; all threads' stacks go to the end of the file `stacks` when it is stuck."""
    global _watchdog, _thread
    stop()
    _watchdog = Watchdog(config.stage_seconds, config.stages, time.monotonic())
    _thread = _Thread(_watchdog, lambda stuck: _end(stuck, stacks))
    _thread.start()


def stop() -> None:
    """Watch no more."""
    global _watchdog, _thread
    if _thread is not None:
        _thread.ended.set()
    _watchdog = _thread = None


def stage(name: str, *, loop: str = "main", waiting_for: Sequence[str] = (), endless: bool = False) -> None:
    """A sign of life: `loop` begins this stage, or is still getting on in it. Costs a microsecond."""
    if _watchdog is not None:
        _watchdog.enter(loop, name, waiting_for, time.monotonic(), endless=endless)


def leave(loop: str = "main") -> None:
    """The loop has ended; silence is no fault any more."""
    if _watchdog is not None:
        _watchdog.leave(loop)


def _end(stuck: dict[str, object], stacks: Path) -> NoReturn:
    try:
        dump_stacks(stacks, stuck)
    except OSError as error:  # a full disk must not keep a stuck process alive
        log.warning("stacks_not_written", file=str(stacks), error=str(error), instead="stderr")
        faulthandler.dump_traceback(2, all_threads=True)
    log.critical("fatal", error=_text(stuck, stacks), **stuck)
    sys.stdout.flush()
    os._exit(EXIT_STUCK)  # a stuck thread would keep an orderly end from ever coming


def dump_stacks(path: Path, stuck: Mapping[str, object]) -> None:
    """Append the stacks of all threads, under a line that says why."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{time.strftime('%Y-%m-%d %H:%M:%S')} pid {os.getpid()} {dict(stuck)}\n")
        file.flush()
        faulthandler.dump_traceback(file, all_threads=True)


def _text(stuck: Mapping[str, object], stacks: Path) -> str:
    whom = ", ".join(map(str, stuck["waiting_for"])) if isinstance(stuck["waiting_for"], list) else ""
    return (
        f"stuck in {stuck['stage']} since {stuck['seconds']} s (watchdog.stage_seconds, watchdog.stages)"
        + (f", waiting for {whom}" if whom else "")
        + f"; stacks of all threads: {stacks}"
    )

"""The watchdog: names the stuck stage, leaves stacks, ends the process; a process that stood still is not to blame."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.paths import ROOT
from vcppo.common.config import WatchdogConfig
from vcppo.common.errors import EXIT_STUCK
from vcppo.common.process.watchdog import TICK_SECONDS, Watchdog, start, stop


def tick_until(watchdog: Watchdog, begin: float, end: float) -> dict[str, object] | None:
    """Tick every second from `begin` to `end`; the first verdict."""
    now = begin
    while now < end:
        now += TICK_SECONDS
        if (found := watchdog.tick(now)) is not None:
            return found
    return None


def test_a_stage_past_its_limit_is_named_with_whom_it_waits_for() -> None:
    watchdog = Watchdog(100.0, {"broadcast": 10.0}, 0.0)
    watchdog.enter("main", "broadcast", ["generator-1"], 0.0)
    assert tick_until(watchdog, 0.0, 10.0) is None
    stuck = watchdog.tick(11.0)
    assert stuck is not None
    assert (stuck["stage"], stuck["waiting_for"], stuck["seconds"]) == ("broadcast", ["generator-1"], 11.0)


def test_a_sign_of_life_and_another_stage_start_anew() -> None:
    watchdog = Watchdog(10.0, {}, 0.0)
    for second in range(0, 50, 5):
        watchdog.enter("main", "update", [], float(second))
        assert tick_until(watchdog, float(second), second + 5.0) is None
    watchdog.leave("main")
    assert tick_until(watchdog, 50.0, 200.0) is None


def test_loops_are_judged_one_by_one_and_an_endless_stage_never() -> None:
    watchdog = Watchdog(10.0, {}, 0.0)
    watchdog.enter("idle", "prompts", [], 0.0, endless=True)
    watchdog.enter("b", "heartbeat", ["redis"], 20.0)
    stuck = tick_until(watchdog, 20.0, 100.0)
    assert stuck is not None
    assert stuck["loop"] == "b"


def test_time_in_which_the_watchdog_did_not_run_counts_for_nobody() -> None:
    watchdog = Watchdog(10.0, {}, 0.0)
    watchdog.enter("main", "claim", [], 0.0)
    assert tick_until(watchdog, 0.0, 5.0) is None
    assert watchdog.tick(3605.0) is None  # stopped for an hour
    assert tick_until(watchdog, 3605.0, 3609.0) is None
    assert tick_until(watchdog, 3609.0, 3620.0) is not None


def test_without_a_watchdog_stages_cost_nothing_and_start_can_be_repeated(tmp_path: Path) -> None:
    from vcppo.common.process.watchdog import leave, stage

    stage("anything")
    leave()
    for _ in range(2):
        start(WatchdogConfig(), tmp_path / "s")
    stop()


def run_child(tmp_path: Path, limit: float, code: str) -> subprocess.Popen[str]:
    script = f"""
        import threading, time
        from pathlib import Path
        from vcppo.common.process import watchdog
        from vcppo.common.config import LoggingConfig, WatchdogConfig
        from vcppo.common.telemetry.log import configure_logging
        configure_logging(LoggingConfig(format="json"), "child", "run")
        watchdog.start(WatchdogConfig(stage_seconds={limit}), Path({str(tmp_path / "stacks.txt")!r}))
    """
    command = [sys.executable, "-c", textwrap.dedent(script) + textwrap.dedent(code)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_a_stuck_process_leaves_stacks_and_ends_with_its_own_code(tmp_path: Path) -> None:
    child = run_child(
        tmp_path,
        1.6,
        """
        def wait_for_ever():
            threading.Event().wait()
        threading.Thread(target=wait_for_ever, daemon=True).start()
        watchdog.stage("broadcast", waiting_for=["generator-7"])
        wait_for_ever()
        """,
    )
    out, _ = child.communicate(timeout=30)
    assert child.returncode == EXIT_STUCK
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["event"] for line in lines] == ["still_in_stage", "fatal"]
    assert "stuck in broadcast" in lines[-1]["error"]
    assert "generator-7" in lines[-1]["error"]
    stacks = (tmp_path / "stacks.txt").read_text()
    assert "generator-7" in stacks
    assert stacks.count("wait_for_ever") == 2


@pytest.mark.timeout(60)
def test_a_stopped_process_is_not_killed_on_wake_up(tmp_path: Path) -> None:
    child = run_child(
        tmp_path,
        2.0,
        """
        print("up", flush=True)
        for _ in range(12):
            watchdog.stage("claim")
            time.sleep(0.5)
        """,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "up\n"
    os.kill(child.pid, signal.SIGSTOP)
    time.sleep(4.0)  # the length of the stop is the test
    os.kill(child.pid, signal.SIGCONT)
    assert child.wait(30) == 0
    assert not (tmp_path / "stacks.txt").exists()

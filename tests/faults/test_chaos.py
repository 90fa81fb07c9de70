"""`vcppo chaos` itself: three minutes of every kind of fault over a real run, as a user would start it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.paths import ROOT

MINUTES = 3.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("chaos")
    command = [sys.executable, "-m", "vcppo.deploy.cli", "chaos", "--minutes", str(MINUTES), "--seed", "1",
               f"run.folder={folder}"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-2000:]}"
    found: dict[str, Any] = json.loads((folder / "small-chaos-1" / "chaos.json").read_text())
    return found


def test_every_check_holds(outcome: dict[str, Any]) -> None:
    assert outcome["passed"]
    assert len(outcome["checks"]) >= 9
    assert [check["what"] for check in outcome["checks"] if not check["passed"]] == []


def test_the_faults_did_happen_and_the_run_got_over_each(outcome: dict[str, Any]) -> None:
    faults = outcome["faults"]
    assert len(faults) >= 6
    assert len({fault["kind"] for fault in faults}) >= 6
    assert all(fault["recovered_after"] is not None for fault in faults)
    assert outcome["steps"] > 3 * len(faults)


def test_processes_were_really_restarted(outcome: dict[str, Any]) -> None:
    ends = ("kill", "terminate")
    hits = [fault for fault in outcome["faults"] if fault["kind"].split()[0] in ends]
    assert sum(outcome["restarts"].values()) >= len(hits)

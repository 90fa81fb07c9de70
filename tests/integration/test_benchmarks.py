"""Every benchmark runs and finds its own results right; small and once, so its figures say nothing (`--quick`)."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmarks.__main__ import BENCHMARKS
from benchmarks.rig.performance_page import DOCS
from tests.paths import ROOT


@pytest.mark.parametrize("name", [each.name for each in reversed(BENCHMARKS) if not each.by_name_only])  # longest first
def test_runs_and_keeps_nothing(name: str) -> None:
    kept = (DOCS / "performance.json").read_bytes()
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", name, "--quick"], cwd=ROOT, capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{name}: " in done.stdout
    assert (DOCS / "performance.json").read_bytes() == kept


def test_unknown_name_is_refused_by_name() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "gea"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert "no benchmark called gea; there are: gae," in done.stderr

"""`python -m benchmarks.gpu --device cpu --quick --part a`: every check of part a, each in its process, on the CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu.__main__ import CHECKS
from tests.paths import ROOT


@pytest.mark.slow
def test_part_a_is_right_on_the_cpu(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--quick",
        "--part",
        "a",
        "--out",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = tmp_path.glob("*.json")
    checks = json.loads(found.read_text())["checks"]
    assert [check["check"] for check in checks] == [check.name for check in CHECKS if check.part == "a"]
    numbers = {number["what"] for check in checks for number in check["numbers"]}
    for dtype in ("float32", "bfloat16"):
        for stage in (0, 3):
            assert f"learner step, {dtype}, ZeRO {stage}: actor's update" in numbers
    assert "ZeRO-Offload" in done.stdout  # what could not run is said

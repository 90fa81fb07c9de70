"""`make audit`: a vulnerability fails it, a database that is away does not, nothing hangs. pip-audit is played here."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.paths import ROOT

LOCK = "a-package==1.2.3 ; python_version > '3' \\\n    --hash=sha256:00\nb==2.0+cpu\n"


def audit(folder: Path, pip_audit: str, seconds: int = 20) -> subprocess.CompletedProcess[str]:
    program, lock = folder / "pip-audit", folder / "some.lock"
    program.write_text(f"#!/usr/bin/env bash\n{pip_audit}\n")
    program.chmod(0o755)
    lock.write_text(LOCK)
    return subprocess.run(
        [ROOT / "scripts" / "audit.sh", lock], capture_output=True, text=True, timeout=30, check=False,
        env={**os.environ, "PIP_AUDIT": str(program), "AUDIT_SECONDS": str(seconds)},
    )  # fmt: skip


def test_it_asks_for_names_and_versions_and_says_how_many(tmp_path: Path) -> None:
    done = audit(tmp_path, f'cp "$2" {tmp_path}/asked')
    assert (done.returncode, (tmp_path / "asked").read_text()) == (0, "a-package==1.2.3\nb==2.0\n")
    assert "no known vulnerability in 2 packages" in done.stdout


@pytest.mark.parametrize(
    ("pip_audit", "code", "says"),
    [
        ("echo 'b 2.0 PYSEC-1'; echo 'Found 1 known vulnerability in 1 package' >&2; exit 1", 1, "PYSEC-1"),
        ("echo 'requests.exceptions.ConnectionError: no' >&2; exit 1", 0, "audit left out: the database can't be"),
        ("sleep 60", 0, "audit left out: no answer from the database in 1 s"),
        ("echo 'duplicate requirements' >&2; exit 1", 2, "duplicate requirements"),
    ],
)
def test_each_end_is_told_apart(pip_audit: str, code: int, says: str, tmp_path: Path) -> None:
    done = audit(tmp_path, pip_audit, seconds=1)
    assert (done.returncode, says in done.stdout + done.stderr) == (code, True)


def test_it_is_a_target_and_a_part_of_ci() -> None:
    assert re.search(r"^audit:.*## ", (ROOT / "Makefile").read_text(), re.M)
    assert "make --no-print-directory audit" in (ROOT / ".ci" / "run").read_text()

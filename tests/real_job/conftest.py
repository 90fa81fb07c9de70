"""A real pretrained model and its data, which `make real-job` makes. Without them the tests are left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.paths import ROOT

FOLDER = Path(os.environ.get("REAL_JOB", ROOT / ".cache" / "real-job"))


@pytest.fixture(scope="session")
def real_job() -> Path:
    """Folder with model/ (SmolLM2-135M-Instruct, bfloat16) and easy.jsonl."""
    if not (FOLDER / "done").exists():
        pytest.skip("no model: `make real-job` makes it where ../shared is, or REAL_JOB names its folder")
    return FOLDER

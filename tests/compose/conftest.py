"""The CPU image, built once from the tree as it is."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.compose.rig import build, no_engine


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    if reason := no_engine():
        pytest.skip(f"no docker engine with compose: {reason}")
    name = f"vcppo:test-{os.getpid()}"
    build(name)
    yield name
    subprocess.run(["docker", "image", "rm", "--force", "--no-prune", name], check=True, capture_output=True)

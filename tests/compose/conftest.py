"""The CPU image, built once from the tree as it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.compose.rig import built_image, no_engine


@pytest.fixture(scope="session")
def image() -> Iterator[str]:
    if reason := no_engine():
        pytest.skip(f"no docker engine with compose: {reason}")
    with built_image(f"vcppo:test-{os.getpid()}") as name:
        yield name

"""What this machine allows, found out once."""

from __future__ import annotations

import pytest

from vcppo.common.sandbox import Isolation, Layers, probe

from .rig import python


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return probe(python("print(1)"))


@pytest.fixture(scope="module")
def layers(isolation: Isolation) -> Layers:
    return isolation.layers

"""Marks every test by the folder it lives in, so that `-m unit` and `-m integration` are never forgotten."""

import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

TESTS = Path(__file__).parent

# No deadline per example: on a shared machine it measures the neighbours, and pytest-timeout ends what hangs. In CI
# the same examples every time, so that a red run means the change.
hypothesis.settings.register_profile("vcppo", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("vcppo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in ("unit", "conformance", "integration", "fuzz", "faults", "compose", "real_job"):
            item.add_marker(getattr(pytest.mark, tier))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A process' `main` called in this one may send log lines to where this test's output goes, closed later."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)

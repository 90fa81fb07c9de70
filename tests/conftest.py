"""Marks every test by the folder it lives in, so that `-m unit` and `-m integration` are never forgotten.

Before any of ours is imported it turns on the run-time check of array shapes and types: see `SHAPE_CHECKED`.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import pytest
import structlog

TESTS = Path(__file__).parent

# No test asks the model hub: without a network its library tries again for more than a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Pure functions and records of arrays. In this process each of their calls is checked against its annotations; the
# processes that tests start, and production, run them as they are.
SHAPE_CHECKED = (
    "vcppo.common.evaluation.explainable_variance",
    "vcppo.common.evaluation.over_prompts",
    "vcppo.learner.algorithm",
    "vcppo.learner.batching.packing",
    "vcppo.learner.critic_quality",
    "vcppo.learner.kernels.log_probs",
    "vcppo.learner.rl.estimates",
)
# `float` takes an int too, as it does for mypy.
_BEARTYPE = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
_early = sorted(name for name in sys.modules if name.startswith(SHAPE_CHECKED))
assert not _early, f"imported before their shapes could be checked: {_early}"
jaxtyping.install_import_hook(SHAPE_CHECKED, _BEARTYPE)

# No deadline per example: on a shared machine it measures the neighbours, and pytest-timeout ends what hangs. In CI
# the same examples every time, so that a red run means the change.
hypothesis.settings.register_profile("vcppo", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("vcppo")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        if tier in ("unit", "conformance", "integration", "fuzz", "faults", "compose", "real_job", "slurm"):
            item.add_marker(getattr(pytest.mark, tier))


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A process' `main` called in this one may send log lines to where this test's output goes, closed later."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(autouse=True)
def nobodys_keys() -> Iterator[None]:
    """A process' `main` called in this one says who it is; sockets of later tests would have its keys."""
    yield
    if (sockets := sys.modules.get("vcppo.common.transport.sockets")) is not None:
        sockets.identify(None)


@pytest.fixture
def shapes_unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production, where the functions themselves must refuse what does not fit."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)

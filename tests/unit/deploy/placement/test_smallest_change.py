"""What a run is told that has no place: the settings it names give it one, and fewer would not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.deploy.placement.test_place import GIB, config, gpus
from vcppo.common.config import VcppoConfig
from vcppo.deploy.placement import smallest_change as module
from vcppo.deploy.placement.needs import problems_of
from vcppo.deploy.placement.smallest_change import changed, remedy, smallest_change
from vcppo.deploy.plan.architecture import models_of


def named(run: VcppoConfig, count: int, memory: int) -> str:
    return remedy(run, gpus(count, memory=memory * GIB), models_of(run))


@pytest.mark.parametrize(
    ("sizes", "machine", "text"),
    [
        ((1, 4, 1), (2, 80), "set generator.num_generators=1"),
        ((1, 4, 1), (4, 80), "set generator.num_generators=3"),
        ((1, 2, 4), (5, 80), "set generator.num_generators=1"),
        ((1, 1, 4), (3, 80), "set generator.tensor_parallel_size=2"),
        ((4, 1, 1), (3, 80), "set learner.num_ranks=2"),
        ((4, 2, 1), (2, 80), "set generator.num_generators=1 learner.num_ranks=1"),
        ((1, 1, 1), (2, 72), "set learner.gradient_checkpointing=true"),
        ((1, 1, 1), (1, 80), "learner and generator need a GPU each: use a machine with two or more"),
        ((1, 1, 1), (2, 4), "no change of ranks, engines, ZeRO stage or micro-batch makes it fit: use more or larger"),
    ],
)
def test_what_is_said(sizes: tuple[int, int, int], machine: tuple[int, int], text: str) -> None:
    assert named(config(*sizes), *machine).startswith(text)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 2, 4])),
    count=st.integers(1, 8),
    memory=st.sampled_from([16, 24, 40, 80]),
)
def test_what_is_named_helps_and_less_does_not(sizes: Any, count: int, memory: int) -> None:
    run, devices = config(*sizes), gpus(count, memory=memory * GIB)
    models = models_of(run)
    found = smallest_change(run, devices, models)
    if not problems_of(run, devices, models):
        return
    if found is None:
        assert named(run, count, memory).endswith(("two or more", "more or larger GPUs"))
        return
    better = changed(run, found)
    assert not problems_of(better, devices, models)
    VcppoConfig.model_validate(better.model_dump())  # the user's file with these settings loads
    for left_out in range(len(found)):
        assert problems_of(changed(run, found[:left_out] + found[left_out + 1 :]), devices, models)


def test_a_run_that_fits_needs_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that can't be helped is told so in a moment, on the largest machine."""
    import time

    began = time.process_time()
    huge = config(8, 8, 8)
    assert "use more or larger GPUs" in remedy(huge, gpus(16, memory=GIB), models_of(huge))
    assert time.process_time() - began < 20
    assert module.MOST_AT_ONCE == 3

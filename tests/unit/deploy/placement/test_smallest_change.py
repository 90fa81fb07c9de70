"""What a run is told that has no place: the settings it names give it one, and fewer would not."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.deploy.placement.test_place import GIB, config, gpus
from vcppo.common.config import VcppoConfig
from vcppo.common.config.checks import config_problems
from vcppo.deploy.placement import smallest_change as module
from vcppo.deploy.placement.needs import best_place, estimated_needs, problems_of
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
        (
            (1, 1, 1),
            (1, 80),
            "use a machine with two or more, or let them share one: set launcher.share_gpus=true "
            "generator.gpu_memory_utilization=0.3 learner.gradient_checkpointing=true",
        ),
        ((1, 1, 1), (1, 40), "learner and generator need a GPU each: use a machine with two or more"),
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
        said = named(run, count, memory)
        assert said.endswith(("two or more", "more or larger GPUs")) or "set launcher.share_gpus=true" in said
        return
    better = changed(run, found)
    assert not problems_of(better, devices, models)
    VcppoConfig.model_validate(better.model_dump())  # the user's file with these settings loads
    for left_out in range(len(found)):
        fewer = changed(run, found[:left_out] + found[left_out + 1 :])
        assert problems_of(fewer, devices, models) or list(config_problems(fewer))


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.sampled_from([1, 2])),
    count=st.integers(1, 3),
    memory=st.sampled_from([24, 48, 80, 141]),
    share=st.sampled_from([0.1, 0.3, 0.5, 0.85]),
)
def test_what_shares_a_gpu_fits_on_it_together(sizes: Any, count: int, memory: int, share: float) -> None:
    """Whatever is said to fit, or to do: bytes of the learner and of the engine are no more than the GPU's."""
    run = config(
        *sizes, launcher={"share_gpus": True}, learner={"gradient_checkpointing": True},
        generator={"gpu_memory_utilization": share},
    )  # fmt: skip
    devices, models = gpus(count, memory=memory * GIB), models_of(run)
    if problems_of(run, devices, models):
        found = smallest_change(run, devices, models)
        if found is None:
            return
        run = changed(run, found)
    placement, needs = best_place(run, devices, models), estimated_needs(models, run)
    for device in placement.ranks:
        engine = sum(device in group for group in placement.generators) * needs.share * (device.memory or 0)
        assert needs.rank + engine <= (device.memory or 0)
    for group in placement.generators:
        assert all(needs.generator <= needs.share * (device.memory or 0) for device in group)


def test_a_run_that_can_not_be_helped_is_told_so_in_a_moment() -> None:
    """On a large machine, where there is most to try."""
    began = time.process_time()
    huge = config(8, 8, 8)
    assert "use more or larger GPUs" in remedy(huge, gpus(16, memory=GIB), models_of(huge))
    assert time.process_time() - began < 20
    assert module.MOST_AT_ONCE == 3

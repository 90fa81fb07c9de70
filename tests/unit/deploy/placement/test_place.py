"""Who gets which GPUs and cores: on machines that are only counted, 0 to 16 GPUs on one to four NUMA nodes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcppo.common.config import VcppoConfig
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import Needs, Part, Placement, PlacementError, lacking, one_a_gpu, place
from vcppo.deploy.placement.placement_table import placed_words, placement_rows
from vcppo.deploy.processes.cores import plan_cores

GIB = 2**30


def config(ranks: int = 1, generators: int = 1, parallel: int = 1, **sections: Any) -> VcppoConfig:
    return VcppoConfig.model_validate({
        "model": {"path": "Qwen/Qwen2.5-1.5B"},
        "learner": {"num_ranks": ranks, **sections.pop("learner", {})},
        "generator": {"num_generators": generators, "tensor_parallel_size": parallel, **sections.pop("generator", {})},
        **sections,
    })  # fmt: skip


def gpus(count: int, num_nodes: int = 1, memory: int | None = 80 * GIB) -> list[Device]:
    return [
        Device(str(number), memory, memory, number * num_nodes // count, gpu=f"GPU-{number}") for number in range(count)
    ]


def cores(count: int, num_nodes: int = 1) -> list[int | None]:
    return [core * num_nodes // count for core in range(count)]


def groups_of(placement: Placement) -> Iterator[tuple[Device, ...]]:
    yield from ((device,) for device in placement.ranks)
    yield from placement.generators


SIZES = st.tuples(st.integers(1, 8), st.integers(1, 6), st.sampled_from([1, 2, 4]))
MACHINES = st.builds(
    lambda count, nodes, seats: (gpus(count, nodes), cores(seats * nodes, nodes)),
    st.integers(1, 16), st.integers(1, 4), st.integers(1, 24),
)  # fmt: skip


@given(sizes=SIZES, machine=MACHINES)
def test_each_process_has_its_devices_and_no_device_has_two(sizes: Any, machine: Any) -> None:
    devices, near = machine
    ranks, generators, parallel = sizes
    wanted = ranks + generators * parallel
    if wanted > len(devices):
        with pytest.raises(PlacementError, match=rf"^{wanted} GPUs for .*, and {len(devices)} "):
            place(config(*sizes), devices, near)
        return
    found = place(config(*sizes), devices, near)
    assert len(found.ranks) == ranks
    assert [len(group) for group in found.generators] == [parallel] * generators
    everything = [*(device for group in groups_of(found) for device in group), *found.free]
    assert sorted(everything, key=lambda device: int(device.name)) == devices
    assert place(config(*sizes), devices, near) == found


@given(sizes=SIZES, machine=MACHINES)
def test_cores_are_everybodys_own_and_near(sizes: Any, machine: Any) -> None:
    devices, near = machine
    if sizes[0] + sizes[1] * sizes[2] > len(devices):
        return
    found = place(config(*sizes), devices, near)
    plan = found.cores
    sets = [plan.learner, *plan.generators]
    assert all(sets) and all(mine <= set(range(len(near))) for mine in sets)
    assert plan.learner_threads >= 1 and plan.generator_threads >= 1
    if not plan.shared:
        assert sum(map(len, sets)) == len(frozenset().union(*sets))
    seats = {node: [d.node for group in groups_of(found) for d in group].count(node) for node in set(near)}
    if len(set(near)) > 1 and all(near.count(node) >= count for node, count in seats.items()):
        assert not plan.shared
        for group, mine in zip(found.generators, plan.generators, strict=True):
            assert {near[core] for core in mine} == {device.node for device in group}
        assert {near[core] for core in plan.learner} == found.rank_nodes


@given(sizes=SIZES, num_cpus=st.integers(1, 64), nodes=st.integers(1, 4))
def test_without_devices_cores_are_what_they_were(sizes: Any, num_cpus: int, nodes: int) -> None:
    """A part of a run, in a container, takes nothing else either."""
    ranks, generators, _ = sizes
    for part in (None, Part(0, 1)):
        found = place(config(*sizes), [], cores(num_cpus, nodes), part=part)
        assert found == Placement((), (), (), plan_cores(num_cpus, generators, ranks))
        assert not found.has_devices


@given(
    sizes=SIZES,
    memories=st.lists(st.sampled_from([16, 24, 48, 80]), min_size=1, max_size=12),
    needs=st.tuples(st.integers(1, 90), st.integers(1, 90)),
)
def test_memory_is_looked_for_and_never_lost_by_looking(sizes: Any, memories: list[int], needs: Any) -> None:
    """As many processes fit as in order of number, at least; with GPUs for all of them, none is too small."""
    devices = [Device(str(i), size * GIB, gpu=str(i)) for i, size in enumerate(memories)]
    if sizes[0] + sizes[1] * sizes[2] > len(devices):
        return
    wanted = Needs(needs[0] * GIB, needs[1] * GIB, 0.9)
    plain = place(config(*sizes), devices, [0])
    found = place(config(*sizes), devices, [0], needs=wanted)
    assert len(list(lacking(found, wanted))) <= len(list(lacking(plain, wanted)))
    if all(size * 0.9 >= max(needs) for size in memories):
        assert not list(lacking(found, wanted))
        assert found == plain


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=12))
def test_of_the_slices_of_a_gpu_one_is_used(parts: list[tuple[int, bool]]) -> None:
    devices = [Device(f"MIG-{i}", 10 * GIB, gpu=f"GPU-{gpu}", is_slice=True) for i, (gpu, _) in enumerate(parts)]
    usable = one_a_gpu(devices)
    assert sorted({device.gpu for device in devices}) == sorted(device.gpu for device in usable)
    if len(usable) < 2:
        with pytest.raises(PlacementError, match=r"2 GPUs for .*, and 1 is visible"):
            place(config(), devices, [0])
        return
    found = place(config(), devices, [0])
    assert found.ranks[0].gpu != found.generators[0][0].gpu


def test_two_slices_are_not_for_one_process() -> None:
    devices = [Device(f"MIG-{i}", 10 * GIB, gpu=f"GPU-{i}", is_slice=True) for i in range(4)]
    for sizes in ((2, 1, 1), (1, 1, 2)):
        with pytest.raises(PlacementError, match="a process sees one MIG slice only, and MIG-0, MIG-1"):
            place(config(*sizes), devices, [0])
    assert len(place(config(1, 3, 1), devices, [0]).generators) == 3


@pytest.mark.parametrize(
    ("sizes", "machine", "words"),
    [
        ((1, 1, 1), gpus(2), "learner on 0; generator-0 on 1"),
        ((1, 1, 1), gpus(8), "learner on 0; generator-0 on 1; free: 2, 3, 4, 5, 6, 7"),
        ((4, 4, 1), gpus(8, 2), "learner on 0, 1, 2, 3; generator-0 on 4; generator-1 on 5; generator-2 on 6; "
                                "generator-3 on 7"),
        ((1, 1, 4), gpus(8, 2), "learner on 0; generator-0 on 4, 5, 6, 7; free: 1, 2, 3"),
        ((2, 3, 2), gpus(8, 2), "learner on 0, 1; generator-0 on 2, 3; generator-1 on 4, 5; generator-2 on 6, 7"),
        ((1, 1, 2), gpus(3, 3), "learner on 0; generator-0 on 1, 2"),  # no node has two
    ],
)  # fmt: skip
def test_who_gets_what(sizes: tuple[int, int, int], machine: list[Device], words: str) -> None:
    assert placed_words(place(config(*sizes), machine, cores(64, 2))) == words


@given(sizes=SIZES, machine=MACHINES)
def test_a_gpu_is_shared_only_when_asked_and_never_by_two_of_a_kind(sizes: Any, machine: Any) -> None:
    devices, near = machine
    ranks, generators, parallel = sizes
    asked = config(*sizes, launcher={"share_gpus": True})
    if max(ranks, generators * parallel) > len(devices):
        with pytest.raises(PlacementError):
            place(asked, devices, near)
        return
    found = place(asked, devices, near)
    engines = [device for group in found.generators for device in group]
    assert len(set(found.ranks)) == ranks and len(set(engines)) == generators * parallel
    both = set(found.ranks) & set(engines)
    assert found.is_shared == bool(both)
    assert not set(found.free) & {*found.ranks, *engines}
    assert len(both) == max(0, ranks + generators * parallel - len(devices))  # no more than there must be
    if ranks + generators * parallel <= len(devices):
        assert not place(config(*sizes), devices, near).is_shared


def test_a_part_of_a_run_asks_for_its_own() -> None:
    """In a container, or on one of a learner's machines."""
    many = config(8, 4, 2)
    assert placed_words(place(many, gpus(4), [0], part=Part(4, 0))) == "learner on 0, 1, 2, 3"
    assert placed_words(place(many, gpus(2), [0], part=Part(0, 1))) == "generator-0 on 0, 1"
    with pytest.raises(PlacementError, match=r"^2 GPUs for generator"):
        place(many, gpus(1), [0], part=Part(0, 1))


def test_rows_of_the_table() -> None:
    two = config(2, 1, 2, task={"verifier_processes": 3})
    rows = list(placement_rows(place(two, gpus(5, 1), cores(16, 1)), two, list(range(100, 116))))
    assert rows == [
        ("learner rank 0", "GPU 0 (node 0)", "cores 105-115"),
        ("learner rank 1", "GPU 1 (node 0)", "cores 105-115"),
        ("generator-0", "GPU 2, 3 (node 0)", "cores 100-104, with 3 verifiers"),
        ("free", "GPU 4", "for generators that are added"),
    ]
    free = config(launcher={"pin_cores": False})
    assert [row[2] for row in placement_rows(place(free, [], [None] * 2), free, [0, 1])] == [
        "any core", "any core, with 1 verifier",
    ]  # fmt: skip

"""Which process gets which GPUs and cores. Pure: config, devices and cores in, a list per process out.

A GPU has one process: NCCL takes one member of a group per GPU, and vLLM takes a fixed share of what it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_USAGE, VcppoError
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.processes.cores import CorePlan, plan_cores

Group = tuple[Device, ...]


class PlacementError(VcppoError):
    """The processes of a run have no place on the devices there are."""

    exit_code = EXIT_USAGE


class Part(NamedTuple):
    """What of a run is on this machine or in this container."""

    num_ranks: int
    num_generators: int

    @classmethod
    def whole(cls, config: VcppoConfig) -> Part:
        """All of it, as `vcppo up` has it."""
        return cls(config.learner.num_ranks, config.generator.num_generators)


class Needs(NamedTuple):
    """Bytes of one device that a process needs to fit on it.

    Attributes:
        rank: of a learner rank.
        generator: of one device of an engine, of which it takes only `share`.
        share: ``generator.gpu_memory_utilization``.
    """

    rank: int = 0
    generator: int = 0
    share: float = 1.0


@dataclass(frozen=True)
class Placement:
    """Devices and cores by process.

    Attributes:
        ranks: one device per learner rank, in the order of local ranks; empty: all is on the CPU.
        generators: devices of each generator, as many as its tensor parallel size.
        free: devices nobody has, for generators that come later.
        cores: positions among this machine's cores.
    """

    ranks: Group
    generators: tuple[Group, ...]
    free: Group
    cores: CorePlan

    @property
    def has_devices(self) -> bool:
        """Whether anything computes on GPUs."""
        return bool(self.ranks or self.generators)

    @property
    def is_shared(self) -> bool:
        """Whether an engine is on a GPU of a learner rank."""
        return bool(set(self.ranks) & {device for group in self.generators for device in group})

    @property
    def rank_nodes(self) -> set[int]:
        """NUMA nodes of the ranks' devices."""
        return {device.node for device in self.ranks if device.node is not None}


def place(
    config: VcppoConfig,
    devices: Sequence[Device],
    core_nodes: Sequence[int | None],
    *,
    part: Part | None = None,
    needs: Needs = Needs(),  # noqa: B008  (immutable)
) -> Placement:
    """The plan of this machine.

    Args:
        devices: that processes may use; none: the run computes on the CPU.
        core_nodes: NUMA node of each core there is.
        part: of the run that is here; None: all of it.
        needs: what to look for where devices differ in memory.

    Raises:
        PlacementError: fewer GPUs than asked for, or MIG slices where whole GPUs are needed.
    """
    part = part or Part.whole(config)
    if not devices:
        whole = Part.whole(config)
        return Placement((), (), (), plan_cores(len(core_nodes), whole.num_generators, whole.num_ranks))
    if (problem := too_few(config, devices, part)) is not None:
        raise PlacementError(problem)
    sizes = [part.num_ranks] * (part.num_ranks > 0) + [config.generator.tensor_parallel_size] * part.num_generators
    shares = config.launcher.share_gpus and part.num_ranks > 0
    tries = _tries(sizes, one_a_gpu(devices), bool(part.num_ranks), shares)
    groups = min(tries, key=lambda tried: _cost(tried, part, needs))
    ranks: Group = groups[0] if part.num_ranks else ()
    generators = tuple(groups[1:] if part.num_ranks else groups)
    taken = {device.key for group in groups for device in group}
    free = tuple(device for device in one_a_gpu(devices) if device.key not in taken)
    return Placement(ranks, generators, free, _cores_near(core_nodes, ranks, generators))


def one_a_gpu(devices: Iterable[Device]) -> Group:
    """Of MIG slices the first of each GPU: NCCL counts a second one as the same GPU twice."""
    first: dict[str, Device] = {}
    for device in devices:
        first.setdefault(device.key, device)
    return tuple(first.values())


def too_few(config: VcppoConfig, devices: Sequence[Device], part: Part) -> str | None:
    """What of the run has no device at all; None: everything has."""
    parallel = config.generator.tensor_parallel_size
    usable, engines = one_a_gpu(devices), part.num_generators * parallel
    wanted = max(part.num_ranks, engines) if config.launcher.share_gpus else part.num_ranks + engines
    asked = " + ".join([
        *([f"learner.num_ranks = {part.num_ranks}"] if part.num_ranks else []),
        *([f"generator.num_generators = {part.num_generators} * generator.tensor_parallel_size = {parallel}"]
          if part.num_generators else []),
    ])  # fmt: skip
    if wanted > len(usable):
        there = f"{len(usable)} {'is' if len(usable) == 1 else 'are'} visible"
        slices = f" ({len(devices)} MIG slices on them)" if len(devices) > len(usable) else ""
        return f"{wanted} {'GPU' if wanted == 1 else 'GPUs'} for {asked}, and {there}{slices}"
    cut = [device.name for device in usable if device.is_slice]
    if cut and max(part.num_ranks, parallel if part.num_generators else 0) > 1:
        return (
            f"{asked}: a process sees one MIG slice only, and {', '.join(cut)} are slices, so learner.num_ranks and"
            " generator.tensor_parallel_size must be 1"
        )
    return None


def lacking(placement: Placement, needs: Needs) -> Iterator[tuple[Device, str, int]]:
    """Devices that are too small for who is on them: the device, ``learner`` or the generator's name, and bytes.

    On a GPU that they share, the learner has what the engine's share leaves.
    """
    engines = {device for group in placement.generators for device in group}
    for device in placement.ranks:
        if device.memory is not None and needs.rank > device.memory * (1 - needs.share * (device in engines)):
            yield device, "learner", needs.rank
    for index, group in enumerate(placement.generators):
        for device in group:
            if device.memory is not None and needs.generator > device.memory * needs.share:
                yield device, f"generator-{index}", needs.generator


def _tries(sizes: list[int], devices: Group, has_ranks: bool, shares: bool) -> Iterator[list[Group]]:
    """Ways to share devices out: by number or the largest memory first, in turn or the largest group first.

    Args:
        has_ranks: the first group is the learner's.
        shares: engines may have its devices too, when there are no others.
    """
    by_memory = tuple(sorted(devices, key=lambda device: -(device.memory or 0)))
    in_turn = list(range(len(sizes)))
    by_size = sorted(in_turn, key=lambda index: -sizes[index])
    for order in (devices, by_memory):
        for turn in (in_turn, by_size, in_turn[1:] + in_turn[:1] if has_ranks and not shares else in_turn):
            left, groups = list(order), {}
            spare: list[Device] = []
            if shares:
                groups[0] = take(left, sizes[0])
                spare += groups[0]
            for index in turn:
                if index not in groups:
                    size = sizes[index]
                    more, spare = spare[: max(0, size - len(left))], spare[max(0, size - len(left)) :]
                    groups[index] = (*take(left, min(size, len(left))), *more)
            yield [groups[index] for index in in_turn]


def take(left: list[Device], size: int) -> Group:
    """`size` devices of one NUMA node, the fullest that has as many; else the first ones. They leave `left`."""
    counts = Counter(device.node for device in left)
    wide_enough = [node for node, count in counts.items() if count >= size]
    group = left[:size]
    if wide_enough:
        node = min(wide_enough, key=counts.__getitem__)  # the first of equals: dicts keep their order
        group = [device for device in left if device.node == node][:size]
    for device in group:
        left.remove(device)
    return tuple(group)


def _cost(groups: list[Group], part: Part, needs: Needs) -> tuple[int, int, int]:
    """How many devices are too small for who is on them, how many are shared, and how many NUMA nodes are too many."""
    ranks = groups[0] if part.num_ranks else ()
    generators = tuple(groups[1:] if part.num_ranks else groups)
    tried = Placement(ranks, generators, (), plan_cores(1, 0, 1))
    too_small, used = len(list(lacking(tried, needs))), [device for group in groups for device in group]
    return too_small, len(used) - len(set(used)), sum(len({device.node for device in group}) - 1 for group in groups)


def _cores_near(core_nodes: Sequence[int | None], ranks: Group, generators: tuple[Group, ...]) -> CorePlan:
    """Each device's share of the cores of its node; as without GPUs where nodes are not known or too narrow."""
    seats = Counter(device.node for group in (ranks, *generators) for device in group)
    cores: dict[int | None, list[int]] = {node: [] for node in seats}
    for core, node in enumerate(core_nodes):
        cores.setdefault(node, []).append(core)
    narrow = any(len(cores[node]) < count for node, count in seats.items())
    if len(set(core_nodes)) < 2 or None in seats or narrow:
        return plan_cores(len(core_nodes), len(generators), max(1, len(ranks)))
    shares = {node: len(cores[node]) // count for node, count in seats.items()}
    near = []
    for group in generators:
        mine: set[int] = set()
        for device in group:
            mine.update(cores[device.node][: shares[device.node]])
            del cores[device.node][: shares[device.node]]
        near.append(frozenset(mine))
    learner = frozenset(core for node in {device.node for device in ranks} for core in cores[node])
    a_rank = min((shares[device.node] for device in ranks), default=1)
    threads = min((len(mine) // len(group) for mine, group in zip(near, generators, strict=True)), default=1)
    return CorePlan(learner or frozenset(range(len(core_nodes))), max(1, a_rank), tuple(near), max(1, threads), False)

"""A placement as words and as rows of a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from vcppo.common.config import VcppoConfig
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import Placement

Row = tuple[str, str, str]


def placed_words(placement: Placement) -> str:
    """In one line: ``learner on 0, 1; generator-0 on 2``."""
    words = [f"learner on {_names(placement.ranks)}"] if placement.ranks else []
    words += [f"generator-{index} on {_names(group)}" for index, group in enumerate(placement.generators)]
    words += [f"free: {_names(placement.free)}"] if placement.free else []
    return "; ".join(words)


def placement_rows(placement: Placement, config: VcppoConfig, cores: Sequence[int]) -> Iterator[Row]:
    """One row a process: its name, its devices, its cores.

    Args:
        cores: ids of the positions that the placement has.
    """
    plan, pinned = placement.cores, config.launcher.pin_cores

    def near(positions: Iterable[int]) -> str:
        return f"cores {_ranges(sorted(cores[position] for position in positions))}" if pinned else "any core"

    shared = ", shared; the learner goes first" if plan.shared and pinned else ""
    if placement.ranks:
        for rank, device in enumerate(placement.ranks):
            yield f"learner rank {rank}", f"GPU {device.name}{_node(device)}", near(plan.learner)
    else:
        for rank in range(config.learner.num_ranks):
            yield f"learner rank {rank}", "CPU", near(plan.learner)
    groups = placement.generators or ((),) * len(plan.generators)
    verifiers = config.task.verifier_processes
    for index, (group, mine) in enumerate(zip(groups, plan.generators, strict=True)):
        children = f", with {verifiers} verifier{'' if verifiers == 1 else 's'}"
        yield (
            f"generator-{index}",
            f"GPU {_names(group)}{_nodes(group)}" if group else "CPU",
            near(mine) + children + (shared),
        )
    if placement.free:
        yield "free", f"GPU {_names(placement.free)}", "for generators that are added"


def _names(devices: Sequence[Device]) -> str:
    return ", ".join(device.name for device in devices)


def _node(device: Device) -> str:
    return "" if device.node is None else f" (node {device.node})"


def _nodes(devices: Sequence[Device]) -> str:
    nodes = sorted({device.node for device in devices if device.node is not None})
    return f" (node {', '.join(map(str, nodes))})" if nodes else ""


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 8``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in parts)

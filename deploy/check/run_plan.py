"""`vcppo plan -c CONFIG`: what the run needs, where each process goes and what will not fit, before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, VcppoError
from vcppo.deploy.check.machine import devices_of
from vcppo.deploy.placement.gpus import Device, nodes_of_cores
from vcppo.deploy.placement.needs import best_place, problems_of
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.placement.placement_table import placement_rows
from vcppo.deploy.placement.smallest_change import remedy
from vcppo.deploy.plan.architecture import Models, models_of
from vcppo.deploy.plan.arithmetic import GIB, make_plan, problems, setting_problems
from vcppo.deploy.plan.plan_tables import host_memory, print_plan
from vcppo.deploy.plan.side_by_side import markdown
from vcppo.deploy.processes.cores import available_cores

ConfigOf = Callable[[argparse.Namespace], VcppoConfig]


class UnknownMachine(VcppoError):
    """The options name a machine that can't be."""

    exit_code = EXIT_USAGE


def run_plan(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    """Returns the exit code. Raises PlanError or UnknownMachine."""
    config = config_of(arguments)
    if arguments.side_by_side:
        print("\n".join(markdown(config, arguments.gpu_memory_gib or 80)))
        return EXIT_OK
    memory = None if arguments.gpu_memory_gib is None else int(arguments.gpu_memory_gib * GIB)
    if arguments.gpus is not None:
        cores = list(range(arguments.cores or len(available_cores())))
        devices, nodes = imagined(arguments.gpus, arguments.numa_nodes, len(cores), memory)
    else:
        cores = available_cores()
        devices, nodes = ([] if memory is not None else devices_of(config)), nodes_of_cores(cores)
        memory = memory or min((device.memory for device in devices if device.memory is not None), default=None)
    models = models_of(config)
    plan = make_plan(models, config, memory, host_memory())
    is_placed = bool(devices) or memory is None
    placed, wrong = _placed(config, models, devices, nodes, cores) if is_placed else ([], [])
    wrong += list(setting_problems(plan, config) if devices else problems(plan, config))
    fits = print_plan(plan, config, arguments.tokens_per_second, placed, wrong)
    return EXIT_OK if fits else EXIT_FAILURE


def imagined(
    num_gpus: int, num_nodes: int, num_cores: int, memory: int | None
) -> tuple[list[Device], list[int | None]]:
    """Devices, and a NUMA node for each core, of a machine that is not this one. Raises UnknownMachine."""
    if memory is None:
        raise UnknownMachine(f"--gpus {num_gpus}: how large? give --gpu-memory-gib too")
    if num_gpus < 1 or num_nodes < 1 or num_cores < 1:
        raise UnknownMachine("--gpus, --numa-nodes and --cores must be at least 1")
    many = num_nodes > 1
    devices = [
        Device(str(number), memory, node=number * num_nodes // num_gpus if many else None, gpu=str(number))
        for number in range(num_gpus)
    ]
    return devices, [core * num_nodes // num_cores if many else None for core in range(num_cores)]


def _placed(
    config: VcppoConfig,
    models: Models,
    devices: Sequence[Device],
    nodes: Sequence[int | None],
    cores: Sequence[int],
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Rows of the placement, and what is wrong with it, with what to do."""
    found = problems_of(config, devices, models) if devices else []
    wrong = [problem.text for problem in found]
    if found:
        wrong[-1] += f": {remedy(config, devices, models)}"
    try:
        placement = best_place(config, devices, models, core_nodes=nodes)
    except PlacementError:
        return [], wrong
    return list(placement_rows(placement, config, cores)), wrong

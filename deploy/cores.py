"""Which process runs on which cores. One pure function, so the plan can be read and tested."""

from __future__ import annotations

import os
from typing import NamedTuple

Cores = frozenset[int]


class CorePlan(NamedTuple):
    """Cores by process, as positions 0 … num_cpus-1 (see `available_cores` for the real ids).

    Attributes:
        learner: cores all learner ranks share.
        learner_threads: OMP threads of one learner rank.
        generators: one set of cores per generator.
        shared: True when learner and generators overlap; idle OMP threads should then sleep, not spin.
    """

    learner: Cores
    learner_threads: int
    generators: tuple[Cores, ...]
    shared: bool


def plan_cores(num_cpus: int, num_generators: int, num_ranks: int) -> CorePlan:
    """Divide `num_cpus` cores among the generators and the learner's ranks.

    With a core for everyone, each generator gets an equal share of its own and the learner the rest. With fewer,
    generators take one core each, round robin, and the learner spans all of them: learning and generating take turns
    (the learner waits for a batch most of the time a generator is busy), so a fixed division would leave cores idle.

    Raises:
        ValueError: when a count is not positive (`num_generators` may be 0).
    """
    if num_cpus < 1 or num_ranks < 1 or num_generators < 0:
        raise ValueError(
            f"num_cpus={num_cpus}, num_ranks={num_ranks} must be >= 1 and num_generators={num_generators} >= 0"
        )
    everything = frozenset(range(num_cpus))
    if num_generators == 0:
        return CorePlan(everything, max(1, num_cpus // num_ranks), (), shared=False)
    if num_cpus >= num_generators + num_ranks:
        share = num_cpus // (num_generators + num_ranks)
        generators = tuple(frozenset(range(i * share, (i + 1) * share)) for i in range(num_generators))
        learner = everything - frozenset().union(*generators)
        return CorePlan(learner, max(1, len(learner) // num_ranks), generators, shared=False)
    generators = tuple(frozenset({i % num_cpus}) for i in range(num_generators))
    return CorePlan(everything, max(1, num_cpus // num_ranks), generators, shared=True)


def available_cores() -> list[int]:
    """Ids of the cores this process may use (a container or taskset may hide some)."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def thread_environment(num_threads: int, *, shared: bool) -> dict[str, str]:
    """Environment that keeps a process to `num_threads` OMP threads; on `shared` cores idle ones sleep."""
    environment = {"OMP_NUM_THREADS": str(num_threads), "MKL_NUM_THREADS": str(num_threads)}
    if shared:
        # Spinning in a barrier would take the core from the process that has work.
        environment |= {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
    return environment

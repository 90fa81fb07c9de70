"""Which process runs on which cores. One pure function, so the plan can be read and tested."""

from __future__ import annotations

import os
from typing import NamedTuple

Cores = frozenset[int]

FEW_CORES = 4  # on fewer, halves waste whichever side is faster

GENERATOR_NICENESS = 10
"""A tenth of the learner's share where both want the same core."""


class CorePlan(NamedTuple):
    """Cores by process, as positions 0 … num_cpus-1 (see `available_cores` for the real ids).

    Attributes:
        learner: cores all learner ranks share.
        learner_threads: OMP threads of one learner rank.
        generators: one set of cores per generator.
        generator_threads: OMP threads of one generator.
        shared: True when learner and generators overlap: generators then run at `GENERATOR_NICENESS`, and idle OMP
            threads should sleep, not spin.
    """

    learner: Cores
    learner_threads: int
    generators: tuple[Cores, ...]
    generator_threads: int
    shared: bool

    @property
    def generator_niceness(self) -> int:
        """Of every generator's process: above 0 where it shares cores with the learner."""
        return GENERATOR_NICENESS if self.shared else 0


def plan_cores(num_cpus: int, num_generators: int, num_ranks: int) -> CorePlan:
    """Divide `num_cpus` cores among the generators and the learner's ranks.

    With a core for everyone, each generator gets an equal share of its own and the learner the rest. With fewer, and
    on fewer than `FEW_CORES`, all may run everywhere and the learner goes first: its step is what everybody's next
    weights wait for, while generators fill whatever is left. No core is idle in the stages where only one side works.

    Raises:
        ValueError: when a count is not positive (`num_generators` may be 0).
    """
    if num_cpus < 1 or num_ranks < 1 or num_generators < 0:
        raise ValueError(
            f"num_cpus={num_cpus}, num_ranks={num_ranks} must be >= 1 and num_generators={num_generators} >= 0"
        )
    everything = frozenset(range(num_cpus))
    if num_generators == 0:
        return CorePlan(everything, max(1, num_cpus // num_ranks), (), 1, shared=False)
    if num_cpus >= max(FEW_CORES, num_generators + num_ranks):
        share = num_cpus // (num_generators + num_ranks)
        generators = tuple(frozenset(range(i * share, (i + 1) * share)) for i in range(num_generators))
        learner = everything - frozenset().union(*generators)
        return CorePlan(learner, max(1, len(learner) // num_ranks), generators, share, shared=False)
    threads = max(1, num_cpus // num_generators)
    return CorePlan(everything, max(1, num_cpus // num_ranks), (everything,) * num_generators, threads, shared=True)


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


def malloc_environment() -> dict[str, str]:
    """Environment in which glibc's malloc keeps its memory, in one arena and in 2 MiB pages; what the user set stays.

    For generators: a weight update allocates each layer anew, twice, and each step its logits. When what is freed goes
    back to the kernel, or 4 KiB pages are asked for, page faults take as long as receiving and loading do.
    """
    return glibc_malloc(hugetlb=1, arena_max=1, mmap_threshold=1 << 30, trim_threshold=1 << 32)


def glibc_malloc(**settings: int) -> dict[str, str]:
    """Environment with these tunables of glibc's malloc; none of them where the user has set any."""
    tunables = ":".join(f"glibc.malloc.{name}={value}" for name, value in settings.items())
    return {} if "GLIBC_TUNABLES" in os.environ else {"GLIBC_TUNABLES": tunables}

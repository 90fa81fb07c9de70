"""`vcppo plan`: what it takes on the command line. Its work is imported when it runs: a help text waits for none."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from vcppo.deploy.check.check_command import Add, ConfigOf
from vcppo.deploy.simulation.plan_options import add_simulation


def add_plan(add: Add, takes_config: Callable[[argparse.ArgumentParser], None], config_of: ConfigOf) -> None:
    """The command."""
    plan = add("plan", partial(_plan, config_of), "memory, bytes, credits and GPUs of a config; exit 1: won't fit",
               "vcppo plan -c my.yaml                                on this machine\n"
               "vcppo plan -c my.yaml --gpu-memory-gib 80            on GPUs of that size\n"
               "vcppo plan -c my.yaml --gpu-memory-gib 80 --gpus 4   on a machine with four of them\n"
               "vcppo plan -c my.yaml learner.num_ranks=16           what if\n"
               "vcppo plan --run runs/demo --simulate                with 1 to 10,000 generators")  # fmt: skip
    takes_config(plan)
    plan.add_argument("--gpu-memory-gib", type=float, metavar="G", help="memory of one GPU; default: this machine's")
    plan.add_argument("--gpus", type=int, metavar="N", help="how many of those a machine has: who gets which")
    plan.add_argument("--numa-nodes", type=int, default=1, metavar="N", help="NUMA nodes of that machine (1)")
    plan.add_argument("--cores", type=int, metavar="N", help="cores of that machine; default: as many as here")
    plan.add_argument("--side-by-side", action="store_true",
                      help="instead: full fine-tuning, LoRA, GRPO; three models, on 1, 2 and 8 GPUs")  # fmt: skip
    plan.add_argument("--tokens-per-second", type=float, metavar="N", help="of one generator, for the flows")
    add_simulation(plan)


def _plan(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    if arguments.simulate:
        from vcppo.deploy.simulation.simulate_command import simulate_run

        return simulate_run(config_of(arguments), arguments)
    from vcppo.deploy.check.run_plan import run_plan

    return run_plan(config_of, arguments)

"""`vcppo chaos` on the command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from vcppo.common.errors import EXIT_OK
from vcppo.deploy.chaos.schedule import Kind, kinds_text

ABOUT = """\
Brings up a real run of its own (never one that exists), then kills, freezes and cuts off its processes at moments drawn
by the seed, about one fault every half minute. After each, the learner must step again within --within seconds, on
trajectories generated after the fault; there are no faults before the first RL step. At the end the run is brought to
rest, and its ledger, its trained trajectories, each issued prompt, staleness, dead letters and every process' end are
checked. Exit 1 if anything is not as it must be. Written to <run>/chaos.json and chaos.txt.
"""
EXAMPLES = """\
vcppo chaos                                  3 minutes over a small run, about 5 in all
vcppo chaos --minutes 30 --seed 7            the same seed deals the same faults
vcppo chaos --seed 7 --plan 20               show the first 20 and start nothing
vcppo chaos --only 'kill learner' --only 'kill redis' --minutes 2
vcppo chaos learner.num_ranks=2              ranks of the learner are hit one by one
vcppo chaos -c my.yaml                       your config and model, in a folder of its own
"""

Add = Callable[[Callable[[argparse.Namespace], int], str, str], argparse.ArgumentParser]


def add_chaos(add: Add) -> None:
    """Declare the command; `add(function, summary, examples)` makes its parser."""
    parser = add(chaos, "faults over a real run, and the proof that nothing was lost", EXAMPLES.rstrip())
    parser.description = f"{ABOUT}\nfaults:\n{kinds_text()}"
    parser.add_argument("overrides", nargs="*", metavar="section.field=value", help="change a setting")
    parser.add_argument(
        "-c", "--config", type=Path, metavar="CONFIG", help="another run than deploy/configs/chaos.yaml"
    )
    parser.add_argument("--minutes", type=float, default=3.0, help="of faults (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="draws the faults (default: 0)")
    parser.add_argument(
        "--within", type=float, default=90.0, metavar="SECONDS", help="time to get over a fault (default: 90)"
    )
    kinds = [kind.value for kind in Kind]
    parser.add_argument("--only", action="append", choices=kinds, metavar="FAULT", help="only this kind; repeatable")
    parser.add_argument("--plan", type=int, metavar="N", help="print the first N faults of the seed and exit")


def chaos(arguments: argparse.Namespace) -> int:
    """The command. Returns the exit code."""
    from rich.console import Console

    from vcppo.deploy.chaos.chaos_run import RECIPE, Chaos, chaos_config, plan, possible_kinds

    config = chaos_config(arguments.config or RECIPE, arguments.overrides, arguments.seed)
    kinds = [Kind(text) for text in arguments.only or ()]
    if arguments.plan:
        possible = possible_kinds(config, arguments.within)
        sys.stdout.write("\n".join(plan(arguments.seed, kinds or possible, arguments.plan)) + "\n")
        return EXIT_OK
    return Chaos(
        config,
        Console(width=None if sys.stdout.isatty() else 120),
        minutes=arguments.minutes,
        seed=arguments.seed,
        limit_seconds=arguments.within,
        kinds=kinds,
    ).run()

"""`vcppo advise`: what it takes on the command line; one page of what a run's own figures say of its critic."""

from __future__ import annotations

import argparse
import json
import sys

from vcppo.common.errors import EXIT_OK
from vcppo.deploy.evaluation.eval_command import Add

_ABOUT = """
From the metrics of the last quarter of steps, and what `vcppo explainable` has found: would a group's mean do as well
as the critic, does the critic lag, what does λ lean on? Each sentence has its figures; where they are within chance it
says so. It reads what is there and starts nothing, so the run may be up.
"""


def add_advise(add: Add) -> None:
    """The command."""
    command = add("advise", _advise, "is the critic worth it, does it lag, what of λ? from a run's own figures",
                  "vcppo explainable runs/first --positions 8,40,80    first: without it less can be said\n"
                  "vcppo advise runs/first\n"
                  "vcppo advise runs/first --json | jq '.[].follows'")  # fmt: skip
    command.epilog = f"{command.epilog}{_ABOUT}"
    command.add_argument("run", nargs="?", metavar="RUN", help="run folder or name; default: the latest")
    command.add_argument("--json", action="store_true", help="the advice as JSON, for jq")


def _advise(arguments: argparse.Namespace) -> int:
    from rich.console import Console

    from vcppo.deploy.evaluation.advice import Facts, advise, measure_first
    from vcppo.deploy.evaluation.explainable_results import read_rows
    from vcppo.deploy.run.run_config import RunError, latest_run, open_run
    from vcppo.deploy.run.run_data import RunData

    folder = latest_run() if arguments.run is None else open_run(arguments.run)
    facts = Facts.of(RunData.load(folder), read_rows(folder))
    advice, first = advise(facts), measure_first(facts, str(folder.path))
    if not advice:
        raise RunError(
            f"{folder.path} has no figures to advise from: it needs a step of RL, or what `vcppo explainable` finds"
        )
    if arguments.json:
        print(json.dumps([each._asdict() for each in advice], indent=1, ensure_ascii=False))
        return EXIT_OK
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    for each in advice:
        console.print(f"[bold]{each.topic}[/]")
        console.print(each.found, markup=False)
        if each.follows:
            console.print(each.follows, markup=False)
        console.print()
    if first is not None:
        console.print("More can be said, with intervals, after:", markup=False)
        console.print(f"  {first}", markup=False, soft_wrap=True)
    return EXIT_OK

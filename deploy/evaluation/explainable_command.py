"""`vcppo explainable`: what it takes on the command line, and what it calls."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from vcppo.common.errors import EXIT_OK
from vcppo.deploy.evaluation.eval_command import Add

if TYPE_CHECKING:
    from vcppo.common.config import VcppoConfig
    from vcppo.common.run_folder import RunFolder

_ABOUT = """
The policy of a version answers training problems, one response each. At each position the response is continued anew,
K times. The variance of the outcome between prefixes, as a share of all variance, is what a state tells at all: no
critic can explain more. Beside it stands what the run's critic explains on the same prefixes.

  explainable falls                    the outcome is decided later, or the task is solved: no fault of the critic
  critic explains less of explainable  the critic lags: more passes may help (docs/critic.md)

Position 0, the prompt alone, is always measured: a group's mean can explain no more than that. Intervals are of 90 %,
over prompts. The cost is about N × (1 + K × positions) responses. Killed in the middle, the same command goes on.
"""


def add_explainable(add: Add) -> None:
    """The command."""
    command = add("explainable", _explainable, "how much of the outcome a critic could explain, and how much it does",
                  "vcppo explainable runs/first --positions 8,40,80,112\n"
                  "vcppo explainable runs/first --positions 8,40,80,112 --version 0       before RL\n"
                  "vcppo explainable runs/first --positions 40 --responses 256 --continuations 16\n"
                  "vcppo explainable runs/first                                           what was found so far\n"
                  "vcppo explainable runs/first --json | jq '.rows[].explainable'")  # fmt: skip
    command.epilog = f"{command.epilog}{_ABOUT}"
    command.set_defaults(overrides=[])
    command.add_argument("run", metavar="RUN", help="run folder or name")
    command.add_argument(
        "--positions", type=_positions, metavar="T,T,...", help="response tokens before each of the states looked at"
    )
    command.add_argument("--responses", type=_at_least(2), default=64, metavar="N", help="responses to continue (64)")
    command.add_argument(
        "--continuations", type=_at_least(2), default=8, metavar="K", help="of each response at each position (8)"
    )
    command.add_argument(
        "--version", type=_version, default=None, metavar="V", help="policy version: latest (default), or a number"
    )
    command.add_argument(
        "--generators", type=_at_least(1), metavar="N", help="vLLM processes; default: generator.num_generators"
    )
    command.add_argument("--json", action="store_true", help="the rows as JSON, for jq")


def _explainable(arguments: argparse.Namespace) -> int:
    from vcppo.common.run_folder import RunFolder
    from vcppo.deploy.evaluation.explainable_results import read_rows
    from vcppo.deploy.run.run_config import RunError, config_of_run, open_run

    run = open_run(arguments.run)
    config = config_of_run(run, arguments.overrides)
    folder = RunFolder(config.run.path)
    if arguments.positions is not None:
        _measure(folder, config, arguments)
    elif not read_rows(folder):
        raise RunError(
            f"{folder.explainable_results} is not there yet: say where to look, such as --positions"
            f" {config.sampling.max_response_tokens // 4},{config.sampling.max_response_tokens // 2}"
        )
    _show(folder, config, as_json=arguments.json)
    return EXIT_OK


def _measure(folder: RunFolder, config: VcppoConfig, arguments: argparse.Namespace) -> None:
    from vcppo.common.evaluation.continuations import Wanted
    from vcppo.deploy.evaluation.explainable_results import keep_rows, rows_of
    from vcppo.deploy.evaluation.explainable_work import ExplainableWork
    from vcppo.deploy.evaluation.policy_weights import find_weights
    from vcppo.deploy.run.run_config import RunError, exclusive
    from vcppo.deploy.terminal.session import open_session

    limit = config.sampling.max_response_tokens
    if beyond := [position for position in arguments.positions if position >= limit]:
        raise RunError(
            f"--positions {beyond[0]}: responses have at most sampling.max_response_tokens = {limit} tokens: choose"
            " smaller ones"
        )
    weights = find_weights(folder, config, arguments.version)
    wanted = Wanted(arguments.responses, tuple(sorted({0, *arguments.positions})), arguments.continuations)
    work = ExplainableWork(config, weights, wanted, arguments.generators or config.generator.num_generators)
    with exclusive(folder.explainable), open_session(config, "silent" if arguments.json else "follow") as session:
        with session.stage("explainable variance"):
            found = work.continued(session)
            values = work.values(session, found)
        rows = rows_of(
            weights.version, found, values, wanted,
            gamma=config.algorithm.gamma, group_size=config.rl.group_size, seed=config.run.seed,
        )  # fmt: skip
        keep_rows(folder, rows)


def _show(folder: RunFolder, config: VcppoConfig, *, as_json: bool) -> None:
    from rich.console import Console

    from vcppo.deploy.evaluation.explainable_results import SCHEMA_VERSION, read_rows
    from vcppo.deploy.evaluation.explainable_table import explainable_table, sentences

    rows = read_rows(folder)
    if as_json:
        shown = {"schema_version": SCHEMA_VERSION, "rows": [row.model_dump(mode="json") for row in rows]}
        print(json.dumps(shown, indent=1))
        return
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(explainable_table(rows))
    console.print()
    for sentence in sentences(rows, config.rl.group_size):
        console.print(sentence, markup=False, soft_wrap=True)
    console.print(
        f"kept in {folder.explainable_results}; drawn by: vcppo report {folder.path}", markup=False, soft_wrap=True
    )


def _positions(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"{text!r}: write numbers of tokens, such as 8,40,80")
    return tuple(int(word) for word in words)


def _version(text: str) -> int | None:
    if text == "latest":
        return None
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no policy version: write latest or a number from 0")
    return int(text)


def _at_least(least: int) -> Callable[[str], int]:
    """argparse's type: an integer from `least`."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least}")
        return int(text)

    return parse

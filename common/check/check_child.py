"""A child program of `vcppo check`: runs its checks and writes one JSON object a line.

{"plan": [["model", "loads"], ...]}          all checks it knows, in order
{"begin": 0, "deadline": 120.0}              number of the check that starts now, and the seconds it may take
{"line": {...}}                              a `CheckLine`
{"end": 0}                                   the check is done
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar

from vcppo.common.check.check_lines import Check
from vcppo.common.config import VcppoConfig, load_config
from vcppo.common.errors import EXIT_OK, VcppoError
from vcppo.common.telemetry.log import configure_logging

ContextT = TypeVar("ContextT")


def arguments_of(program: str, about: str | None) -> argparse.ArgumentParser:
    """What every such program takes."""
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--first", type=int, default=0, metavar="N", help="number of the check to begin with")
    return parser


def run_child(
    given: argparse.Namespace,
    service: str,
    checks: Sequence[Check[ContextT]],
    make_context: Callable[[VcppoConfig], ContextT],
) -> int:
    """All checks from number ``given.first`` on. Standard output is for lines alone: what libraries print goes to
    standard error. Returns the exit code; failed checks are lines, not failures of the program."""
    lines = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        config = load_config(given.config, [])
        configure_logging(config.logging, service, config.run.name)
        report(checks, make_context(config), lines, first=given.first)
    except VcppoError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return EXIT_OK


def report(checks: Sequence[Check[ContextT]], context: ContextT, out: IO[str], *, first: int = 0) -> None:
    """Run checks number `first` and on, writing each line as it is known."""

    def write(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    write({"plan": [[check.group, check.name] for check in checks]})
    for number, check in enumerate(checks[first:], start=first):
        write({"begin": number, "deadline": check.deadline_seconds})
        for line in check.lines(context):
            write({"line": line.as_dict()})
        write({"end": number})

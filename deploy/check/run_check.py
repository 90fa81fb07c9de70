"""`vcppo check`: the quick checks, then learner's and generator's side by side; exit code 1 when any failed."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.status import Status

from vcppo.common.check.check_lines import CheckLine
from vcppo.common.config import VcppoConfig, dump_config
from vcppo.common.errors import EXIT_FAILURE, EXIT_OK, ConfigError
from vcppo.deploy.check.children import Children, Ended, Planned, child_programs
from vcppo.deploy.check.machine import Machine, Setup, devices_of
from vcppo.deploy.check.quick import QUICK
from vcppo.deploy.check.render import GROUPS, Screen
from vcppo.deploy.placement.needs import best_place, known_models
from vcppo.deploy.placement.place import Placement, PlacementError

ConfigOf = Callable[[argparse.Namespace], VcppoConfig]

_FROM_CHILDREN = GROUPS[GROUPS.index("data") :]


def run_check(config_of: ConfigOf, arguments: argparse.Namespace) -> int:
    """Returns the exit code."""
    began = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 120)
    screen = Screen(console, as_json=arguments.json)
    try:
        config = config_of(arguments)
    except ConfigError as error:
        for problem in error.problems:
            screen.add(CheckLine("settings", "config", "failed", problem))
    else:
        if arguments.quick:
            _quick(config, screen)
        else:
            _all(config, screen, arguments.generate)
    screen.finish(time.monotonic() - began)
    return EXIT_FAILURE if screen.counts["failed"] else EXIT_OK


def _quick(config: VcppoConfig, screen: Screen) -> None:
    setup = Setup(config, Machine.look())
    for check in QUICK:
        for line in check.lines(setup):
            screen.add(line)


def _all(config: VcppoConfig, screen: Screen, generate: int) -> None:
    """The children start first: they import for some seconds, while the quick checks run here."""
    screen.expect(_FROM_CHILDREN)  # until the children have said what they run, nothing of theirs is over
    with tempfile.TemporaryDirectory(prefix="vcppo-check-") as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(dump_config(config), encoding="utf-8")
        with Children(child_programs(path, generate, _placement(config))) as children:
            _quick(config, screen)
            _follow(children, screen)


def _placement(config: VcppoConfig) -> Placement | None:
    """None: there is none, as a quick check says."""
    try:
        return best_place(config, devices_of(config), known_models(config))
    except PlacementError:
        return None


def _follow(children: Children, screen: Screen) -> None:
    waiting_for_plans = {"learner", "generator"}
    progress: Status | nullcontext[None] = nullcontext()
    if screen.console.is_terminal and not screen.as_json:
        progress = screen.console.status("")
    with progress as status:
        for event in children.events():
            if isinstance(event, CheckLine):
                screen.add(event)
            elif isinstance(event, Ended):
                screen.done(event.group)
            elif isinstance(event, Planned) and event.child in waiting_for_plans:
                waiting_for_plans.remove(event.child)
                screen.expect(group for group, _ in event.checks)
                if not waiting_for_plans:
                    for group in _FROM_CHILDREN:
                        screen.done(group)
            if status is not None:
                status.update(" · ".join(children.running))

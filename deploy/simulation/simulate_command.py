"""`vcppo plan --run RUN --simulate`: the run with 1 to 10,000 generators, as tables, a picture and sentences.

The model runs in a child program, `python -m vcppo.learner.simulation`: what decides credits and batches is the
learner's, which `deploy` does not import.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Hashable, Mapping
from importlib.util import find_spec
from typing import TypeVar

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_OK, EXIT_USAGE, VcppoError
from vcppo.common.records.simulated import Simulated, Workload
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_data import RunData
from vcppo.deploy.simulation.measured import workload_of
from vcppo.deploy.simulation.picture import draw
from vcppo.deploy.simulation.scenarios import by_number, by_settings, enough, recommendations, with_learner

DEADLINE_SECONDS = 1800.0
Name = TypeVar("Name", bound=Hashable)


class SimulationError(VcppoError):
    """It can't be simulated."""


class NoSimPy(VcppoError):
    """The extra is not installed."""

    exit_code = EXIT_USAGE


def simulate_run(config: VcppoConfig, arguments: argparse.Namespace) -> int:
    """Returns the exit code.

    Raises:
        NoSimPy, SimulationError, NotMeasured: see there.
    """
    if find_spec("simpy") is None:
        raise NoSimPy("--simulate needs SimPy: pip install 'vcppo[simulation]'")
    folder = RunFolder(config.run.path)
    if not folder.config.exists():
        raise SimulationError(f"{folder.path}: no run is there: --simulate reads the measurements of one (--run RUN)")
    data = RunData.load(folder)
    measured = with_learner(workload_of(config, data, arguments.pause_per_generator), arguments.learner_speed)
    numbers = by_number(measured, len(data.generators), arguments.learner_grows)
    by_count = run_model(numbers)
    count = enough(by_count)
    changed = run_model(by_settings(numbers[count]))
    picture = arguments.picture or folder.report / "simulation.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(draw(by_count, f"{config.run.name}: {_what(measured, arguments)}"))
    console = Console(width=None if os.isatty(1) else 120, highlight=False)
    console.print(_table(f"simulated: {_what(measured, arguments)}", "generators", by_count))
    console.print(_table(f"with {count:,} generators", "changed", changed))
    for sentence in recommendations(by_count, numbers, changed):
        console.print(f"- {sentence}", soft_wrap=True, markup=False)
    console.print(f"nothing of it was run: measured with {len(data.generators)} generators; picture: {picture}",
                  soft_wrap=True, markup=False)  # fmt: skip
    return EXIT_OK


def run_model(cases: Mapping[Name, Workload]) -> dict[Name, Simulated]:
    """Each case in the model. Raises SimulationError."""
    told = "".join(case.model_dump_json() + "\n" for case in cases.values())
    command = [sys.executable, "-m", "vcppo.learner.simulation"]
    try:
        child = subprocess.run(
            command, input=told, capture_output=True, text=True, timeout=DEADLINE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise SimulationError(
            f"the model took longer than {DEADLINE_SECONDS:.0f} s: a smaller rl.batch_size is faster"
        ) from None
    try:
        answers = [Simulated.model_validate_json(line) for line in child.stdout.splitlines()]
    except ValidationError as error:
        raise SimulationError(f"the model's answer is none: {error}") from error
    if child.returncode or len(answers) != len(cases):
        raise SimulationError(f"{' '.join(command)} ended with exit code {child.returncode}: {child.stderr[-500:]}")
    return dict(zip(cases, answers, strict=True))


def _what(case: Workload, arguments: argparse.Namespace) -> str:
    learner = "learner and batch grow with the generators" if arguments.learner_grows else "one learner"
    speed = "" if arguments.learner_speed == 1 else f" {arguments.learner_speed:g} times as fast"
    return f"B = {case.batch_size}, η = {case.max_staleness}, {case.slots} sequences each, {learner}{speed}"


def _table(title: str, first: str, results: Mapping[Name, Simulated]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1))
    table.add_column(first, justify="right" if first == "generators" else "left")
    for name in ("tokens/s", "s a step", "staleness", "learner waits", "generators wait", "paused", "pause s", "Redis"):
        table.add_column(name, justify="right")
    for case, result in results.items():
        table.add_row(
            str(case), f"{result.tokens_per_second:,.0f}",
            f"{result.seconds_per_step:.2f}", f"{result.mean_staleness:.2f}", f"{result.learner_waiting:.0%}",
            f"{result.generators_waiting:.0%}", f"{result.generators_paused:.1%}", f"{result.pause_seconds:.3f}",
            f"{result.store_busy:.1%}",
        )  # fmt: skip
    return table

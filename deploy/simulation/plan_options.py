"""The options of `vcppo plan --simulate`; apart: other commands need not load what draws."""

from __future__ import annotations

import argparse
from pathlib import Path

PAUSE_PER_GENERATOR_SECONDS = 0.8e-3  # about eight calls of rank 0 to each, of 0.1 ms: reckoned, not measured


def add_simulation(plan: argparse.ArgumentParser) -> None:
    """The options of `vcppo plan`."""
    plan.add_argument(
        "--simulate",
        action="store_true",
        help="instead: the measurements of --run with 1 to 10,000 generators (docs/scaling.md)",
    )
    plan.add_argument("--learner-grows", action="store_true",
                      help="--simulate: batch and learner's speed in proportion to the generators")  # fmt: skip
    plan.add_argument("--learner-speed", type=_positive, default=1.0, metavar="X",
                      help="--simulate: a learner that many times as fast as measured (1)")  # fmt: skip
    plan.add_argument("--pause-per-generator", type=_seconds, default=PAUSE_PER_GENERATOR_SECONDS, metavar="SECONDS",
                      help="--simulate: how much longer a weight update stands still for each (0.0008)")  # fmt: skip
    plan.add_argument("--picture", type=Path, metavar="PNG", help="--simulate: where; default: <run>/report")


def _positive(text: str) -> float:
    if not (value := float(text)) > 0:
        raise argparse.ArgumentTypeError(f"{text}: must be above 0")
    return value


def _seconds(text: str) -> float:
    if not (value := float(text)) >= 0:
        raise argparse.ArgumentTypeError(f"{text}: must be 0 or more")
    return value

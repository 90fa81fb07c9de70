"""``python -m tests.fuzz wire --runs 1000000 --seed 0``: run a target and print figures; exit 1 on a finding.

``buffer`` and ``control`` send theirs through a real socket to a real process. ``all``, or nothing, is the hostile hour
(`tests.fuzz.hour`): ten million inputs on all cores. ``--guided SECONDS`` lets atheris choose the cases, by coverage;
``--case FILE`` runs a kept one again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import traceback
from pathlib import Path

import structlog

from tests.fuzz.guided import run_guided
from tests.fuzz.hour import run_hour
from tests.fuzz.rig.harness import Finding, run
from tests.fuzz.targets import LONG_RUNS, NAMES, load

SOCKETS = ("buffer", "control")
SOCKET_MESSAGES = 50_000
KEEP = Path(tempfile.gettempdir()) / "vcppo-fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", nargs="?", default="all", choices=[*NAMES, *SOCKETS, "all"])
    parser.add_argument("--scale", type=float, default=1.0, help="of the hour: so much of each target")
    parser.add_argument("--runs", type=int, help="cases; default: as many as a long run of the target has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="coverage-guided, by atheris, for so long")
    parser.add_argument("--case", type=Path, help="run the bytes of this file only")
    parser.add_argument("--keep", type=Path, default=KEEP, help="where a case that breaks something is kept")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # we count, they speak
    if given.name == "all":
        return run_hour(given.seed, given.keep, given.scale)
    if given.name in SOCKETS:
        besiege = run_buffer if given.name == "buffer" else run_control
        return besiege(given.runs or SOCKET_MESSAGES, given.seed ^ given.first)
    harness = load(given.name)
    if given.case is not None:
        say(f"refused: {reason}" if (reason := harness.one(given.case.read_bytes())) else "accepted")
        return 0
    if given.guided is not None:
        return run_guided(harness, given.guided, given.keep)
    return run_target(given.name, given.runs, given.seed, given.first, given.keep)


def run_target(name: str, num_runs: int | None, seed: int, first: int, keep: Path) -> int:
    """Figures, or the finding with its traceback."""
    try:
        figures = run(load(name), num_runs or LONG_RUNS[name], seed, first=first, keep=keep)
    except Finding:
        say(traceback.format_exc())
        return 1
    for line in (f"{name}, seed {seed}:", *figures.lines()):
        say(line)
    return 0


def run_buffer(num_messages: int, seed: int) -> int:
    """Through a real socket into a real buffer process, see `tests.fuzz.buffer`."""
    from tests.fuzz.buffer import attack, target

    with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as victim:
        figures = attack(victim, num_messages, seed)
    for line in (f"buffer, seed {seed}:", *figures.lines()):
        say(line)
    return 0 if figures.is_good_one_accepted else 1


def run_control(num_calls: int, seed: int) -> int:
    """Through a real socket into a real control port, see `tests.fuzz.control`."""
    from tests.fuzz.control import siege, victim

    with victim() as target:
        figures = siege(target, num_calls, seed)
    for line in (f"control, seed {seed}:", *figures.lines()):
        say(line)
    return 0 if figures.is_good_one_answered else 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

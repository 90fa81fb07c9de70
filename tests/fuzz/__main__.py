"""``python -m tests.fuzz wire --runs 1000000 --seed 0``: run a target and print figures; exit 1 on a finding.

``buffer`` sends them through a real socket to a real buffer process; ``all`` is every target and the buffer: a quarter
of an hour. ``--guided SECONDS`` lets atheris choose the cases, by coverage; ``--case FILE`` runs a kept one again.
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
from tests.fuzz.rig.harness import Finding, run
from tests.fuzz.targets import LONG_RUNS, NAMES, load

BUFFER_MESSAGES = 50_000
KEEP = Path(tempfile.gettempdir()) / "vcppo-fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "buffer", "all"])
    parser.add_argument("--runs", type=int, help="cases; default: as many as a long run of the target has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="coverage-guided, by atheris, for so long")
    parser.add_argument("--case", type=Path, help="run the bytes of this file only")
    parser.add_argument("--keep", type=Path, default=KEEP, help="where a case that breaks something is kept")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # we count, they speak
    if given.name == "all":
        return max(*(run_target(name, None, given.seed, 0, given.keep) for name in NAMES), run_buffer(None, given.seed))
    if given.name == "buffer":
        return run_buffer(given.runs, given.seed)
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


def run_buffer(num_messages: int | None, seed: int) -> int:
    """Through a real socket into a real buffer process, see `tests.fuzz.buffer`."""
    from tests.fuzz.buffer import attack, target

    with tempfile.TemporaryDirectory() as folder, target(Path(folder)) as victim:
        figures = attack(victim, num_messages or BUFFER_MESSAGES, seed)
    for line in (f"buffer, seed {seed}:", *figures.lines()):
        say(line)
    return 0 if figures.is_good_one_accepted else 1


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

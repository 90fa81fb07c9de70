"""``python -m tests.fuzz NAME --runs 1000000 --seed 0``: run a target and print figures; exit 1 on a finding.

``--guided SECONDS`` lets atheris choose the cases by coverage instead; ``--case FILE`` runs one kept case again.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from pathlib import Path

import structlog

from tests.fuzz.guided import run_guided
from tests.fuzz.harness import Finding, run
from tests.fuzz.targets import NAMES, load

KEEP = Path(tempfile.gettempdir()) / "vcppo-fuzz"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("name", choices=[*NAMES, "buffer"])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--guided", type=int, metavar="SECONDS", help="coverage-guided, by atheris, for so long")
    parser.add_argument("--case", type=Path, help="run the bytes of this file only")
    parser.add_argument("--keep", type=Path, default=KEEP, help="where a case that breaks something is kept")
    given = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))  # we count, they speak
    if given.name == "buffer":
        return run_buffer(given.runs, given.seed)
    harness = load(given.name)
    if given.case is not None:
        say(f"refused: {reason}" if (reason := harness.one(given.case.read_bytes())) else "accepted")
        return 0
    if given.guided is not None:
        return run_guided(harness, given.guided, given.keep)
    try:
        figures = run(harness, given.runs, given.seed, first=given.first, keep=given.keep)
    except Finding as finding:
        say(str(finding))
        raise
    for line in (f"{given.name}, seed {given.seed}:", *figures.lines()):
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


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())

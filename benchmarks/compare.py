"""What moved between two versions of docs/performance.json: `make bench-compare A=v0.2.0 B=HEAD`.

A and B are each a commit, a tag or a branch of this repository, or a JSON file such as `make bench` leaves. B may be
left out: then it is docs/performance.json as it lies here, committed or not. So after `make bench`,

    python -m benchmarks compare HEAD

shows what the run changed. Each figure comes with both medians and ranges. A move is outside the noise when the ranges
of the two have no value in common; better or worse is by the figure's goal. Where the machines differ nothing is
judged. Nothing is measured here, and nothing written.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import REPOSITORY
from benchmarks.rig.compare import Kept, lines

PAGE = "docs/performance.json"


class Unreadable(Exception):
    """One of the two can't be read; the text says which, why, and what to give in its place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Print it. Returns the exit code: 0, whatever moved; 2 when one of the two can't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", metavar="A", help="commit, tag, branch or JSON file")
    parser.add_argument("after", metavar="B", nargs="?", default=str(REPOSITORY / PAGE), help=f"default: {PAGE}")
    parser.add_argument("--outside", action="store_true", help="leave out moves within the noise")
    options = parser.parse_args(arguments)
    try:
        before, after = read(options.before), read(options.after)
    except Unreadable as error:
        print(f"benchmarks compare: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines(before, after, outside_only=options.outside)))
    return 0


def read(name: str) -> Kept:
    """Figures of a file, or of docs/performance.json in a commit. Raises Unreadable."""
    if Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        done = subprocess.run(
            ["git", "show", f"{name}:{PAGE}"], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise Unreadable(
                f"{name} is no file, and git has no {PAGE} in a commit of that name"
                f" ({done.stderr.strip()}): give a file, or a commit that `git log -- {PAGE}` lists"
            )
        text = done.stdout
    try:
        found: Any = json.loads(text)
    except ValueError as error:
        raise Unreadable(f"{name} is not JSON ({error}): give a file that `make bench` has written") from error
    if not isinstance(found, dict) or not all(_is_entry(entry) for entry in found.values()):
        raise Unreadable(
            f"{name} lacks `date`, `machine` and `figures` by benchmark: give a file that `make bench` has written"
        )
    return found


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and {"date", "machine", "figures"} <= entry.keys()


if __name__ == "__main__":
    sys.exit(main())

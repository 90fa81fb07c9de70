"""The hostile hour, ``make fuzz``: ten million inputs at everything that reads what others wrote, on all cores.

Each piece of a target's cases runs in a process of its own, so what one breaks shows in that line of the table: a
finding (a property that did not hold, with the command that runs the case again), or a process that did not live.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.targets import HOUR

PIECE_SECONDS = 3600.0
_FINDING, _FINE = 1, 0


class Piece(NamedTuple):
    """Some cases of a target: ``first`` to ``first + count``."""

    name: str
    first: int
    count: int


@dataclass
class Line:
    """What a target came to. `seconds`: of all its processes together."""

    name: str
    num_inputs: int = 0
    seconds: float = 0.0
    num_processes: int = 0
    num_alive: int = 0
    findings: list[str] = field(default_factory=list)


def pieces(scale: float) -> list[Piece]:
    """All of the hour, the targets mixed so that none waits for the end; `scale` < 1: so much of each."""
    found = []
    for name, (whole, size) in HOUR.items():
        inputs = max(1, int(whole * scale))
        found += [(first / inputs, Piece(name, first, min(size, inputs - first))) for first in range(0, inputs, size)]
    return [piece for _, piece in sorted(found)]


def run_hour(seed: int, keep: Path, scale: float = 1.0) -> int:
    """Run it, print the table. Returns 0 when there is no finding and every process was alive at its end."""
    lines, todo = {name: Line(name) for name in HOUR}, pieces(scale)
    began = time.monotonic()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        done = pool.map(lambda piece: run_piece(piece, seed, keep), todo)
        for number, (piece, code, output, seconds) in enumerate(done, 1):
            line = lines[piece.name]
            line.num_inputs += piece.count
            line.seconds += seconds
            line.num_processes += 1
            line.num_alive += code in (_FINE, _FINDING)
            if code != _FINE:
                line.findings.append(output[-3000:])
            say = "" if code == _FINE else f", exit code {code}"
            sys.stderr.write(f"{number} of {len(todo)}: {piece.name}, {piece.count:,} inputs in {seconds:.0f} s{say}\n")
    for text in table(lines.values(), time.monotonic() - began):
        sys.stdout.write(text + "\n")
    for line in lines.values():
        for finding in line.findings:
            sys.stdout.write(f"\n{line.name}:\n{finding}\n")
    return int(any(line.findings or line.num_alive < line.num_processes for line in lines.values()))


def run_piece(piece: Piece, seed: int, keep: Path) -> tuple[Piece, int, str, float]:
    """(piece, exit code, its output, seconds). One that takes longer than `PIECE_SECONDS` counts as hanging."""
    command = [sys.executable, "-m", "tests.fuzz", piece.name, "--runs", str(piece.count), "--keep", str(keep)]
    command += ["--seed", str(seed), "--first", str(piece.first)]
    began = time.monotonic()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIECE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return piece, -1, f"no end after {PIECE_SECONDS:.0f} s: {' '.join(command)}", time.monotonic() - began
    return piece, done.returncode, f"{' '.join(command)}\n{done.stdout}{done.stderr}", time.monotonic() - began


def table(lines: Iterable[Line], seconds: float) -> Iterator[str]:
    """Target, inputs, inputs a second of one core, findings, processes alive at their end."""
    found = list(lines)
    yield f"{'target':<12} {'inputs':>11} {'per second':>11} {'findings':>9} {'alive':>9}"
    for line in found:
        rate = line.num_inputs / line.seconds if line.seconds else 0.0
        alive = f"{line.num_alive} of {line.num_processes}"
        yield f"{line.name:<12} {line.num_inputs:>11,} {rate:>11,.0f} {len(line.findings):>9} {alive:>9}"
    total = sum(line.num_inputs for line in found)
    yield f"{'all':<12} {total:>11,} {total / seconds:>11,.0f} {sum(len(line.findings) for line in found):>9}"
    yield f"in {seconds / 60:.1f} minutes"

"""What every fuzz target is, and the loop that runs one and counts.

A target takes any bytes and has one property: either they are accepted, and mean the same after being written and read
again, or the one declared error says which part is wrong. Any other exception is a bug. Three drivers use it: pytest
(`tests/fuzz/test_*.py`), ``python -m tests.fuzz`` (figures), and atheris (coverage-guided, `tests.fuzz.guided`).
"""

from __future__ import annotations

import atexit
import gc
import os
import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

ACCEPTED = ""
_REASON_CHARACTERS = 24
_WARM_UP_SHARE = 20  # one run in so many is before memory is looked at: caches and pools fill


@dataclass(frozen=True)
class Harness:
    """One target.

    Attributes:
        name: as ``python -m tests.fuzz NAME`` takes it.
        one: the property. Returns `ACCEPTED`, or the reason of the refusal; raises on a bug.
        draw: a case from a seeded generator: valid ones, and mutations that know the form.
        seeds: valid cases, for coverage-guided runs to start from.
    """

    name: str
    one: Callable[[bytes], str]
    draw: Callable[[Random], bytes]
    seeds: Callable[[], list[bytes]]


class Finding(Exception):
    """A case that broke the property; the text says how to run it again."""


@dataclass
class Figures:
    """What a run showed.

    Attributes:
        slowest_seconds: of one case, in CPU time.
        grown_mib: resident memory at the end over that after the warm-up.
        peak_mib: the most the process ever held.
    """

    num_runs: int = 0
    num_accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    num_bytes: int = 0
    seconds: float = 0.0
    slowest_seconds: float = 0.0
    slowest_case: int = 0
    grown_mib: float = 0.0
    peak_mib: float = 0.0

    def lines(self) -> Iterator[str]:
        num_refused = sum(self.refused.values())
        yield f"{self.num_runs:,} cases, {self.num_bytes / 2**20:,.0f} MiB, in {self.seconds:.1f} s"
        yield f"accepted {self.num_accepted:,}, refused {num_refused:,}, for {len(self.refused)} reasons:"
        yield from (f"  {count:>9,}  {reason}" for reason, count in self.refused.most_common(25))
        yield f"slowest: {self.slowest_seconds * 1e3:.1f} ms of CPU (case {self.slowest_case})"
        yield f"memory: peak {self.peak_mib:.0f} MiB, grown by {self.grown_mib:.1f} MiB after the warm-up"


def run(harness: Harness, num_runs: int, seed: int, *, first: int = 0, keep: Path | None = None) -> Figures:
    """Cases ``first`` to ``first + num_runs`` of ``seed``.

    Args:
        keep: folder for the bytes of a case that breaks the property.

    Raises:
        Finding: a case broke the property; its cause is chained.
    """
    figures, rng = Figures(), Random()
    warm_up = num_runs // _WARM_UP_SHARE
    began, resident = time.perf_counter(), resident_mib()
    for number in range(first, first + num_runs):
        if number - first == warm_up:
            gc.collect()
            resident = resident_mib()
        rng.seed(seed << 40 | number)
        data = harness.draw(rng)
        started = time.process_time()
        try:
            reason = harness.one(data)
        except Exception as error:
            raise _finding(harness, data, seed, number, keep, error) from error
        took = time.process_time() - started
        if took > figures.slowest_seconds:
            figures.slowest_seconds, figures.slowest_case = took, number
        figures.num_bytes += len(data)
        if reason:
            figures.refused[reason[:_REASON_CHARACTERS]] += 1
        else:
            figures.num_accepted += 1
    gc.collect()
    figures.num_runs = num_runs
    figures.seconds = time.perf_counter() - began
    figures.grown_mib = resident_mib() - resident
    figures.peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return figures


def scratch() -> Path:
    """A folder that is gone when the process ends."""
    folder = Path(tempfile.mkdtemp(prefix="vcppo-fuzz-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def resident_mib(pid: int | str = "self") -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def reason_of(error: Exception, known: frozenset[str] | None = None) -> str:
    """The part an error names first. AssertionError when it names none, or rambles."""
    text = str(error)
    name, colon, rest = text.partition(": ")
    assert colon and rest, f"names no part: {text[:200]!r}"
    assert len(text) < 2000, f"{len(text)} characters of error: {text[:200]!r}"
    assert text.isprintable(), f"control characters in an error: {text[:200]!r}"
    return name if known is None or name in known else "(a key)"


def _finding(harness: Harness, data: bytes, seed: int, number: int, keep: Path | None, error: Exception) -> Finding:
    again = f"python -m tests.fuzz {harness.name} --seed {seed} --first {number} --runs 1"
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        file = keep / f"{harness.name}-{seed}-{number}.bin"
        file.write_bytes(data)
        again = f"python -m tests.fuzz {harness.name} --case {file}"
    return Finding(f"{harness.name}: {type(error).__name__}: {str(error)[:500]}\nagain: {again}")

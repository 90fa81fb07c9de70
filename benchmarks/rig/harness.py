"""Timing that holds on a noisy machine: rounds in which every contender runs once, ratios round by round."""

from __future__ import annotations

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import psutil

_SAMPLE_SECONDS = 0.01  # a call shorter than this is repeated within a sample
_CLEAR_PEAK = "5"  # see proc(5), clear_refs


@dataclass(frozen=True)
class Settings:
    """How thorough to be: `--quick` runs every benchmark once, small, to see that it works; its figures say nothing."""

    quick: bool = False

    def rounds(self, full: int) -> int:
        """Rounds to measure."""
        return 1 if self.quick else full

    def size(self, full: int, quick: int) -> int:
        """A problem size."""
        return quick if self.quick else full


class Timing(NamedTuple):
    """One contender's seconds per call, a sample a round, and its peak memory above the level before."""

    wall: list[float]
    cpu: list[float]
    peak_bytes: int

    @property
    def median(self) -> float:
        """Wall seconds."""
        return statistics.median(self.wall)

    @property
    def median_cpu(self) -> float:
        """Process CPU seconds, all threads."""
        return statistics.median(self.cpu)

    @property
    def peak_mib(self) -> float:
        return self.peak_bytes / 2**20


def measure(calls: Mapping[str, Callable[[], object]], rounds: int, *, single_calls: bool = False) -> dict[str, Timing]:
    """Each call once to warm up (its peak memory is taken there), then `rounds` times in turn: A B C, A B C, …

    So a machine that slows down slows all alike, and `ratios` compares what ran within one round.

    Args:
        single_calls: a sample is one call, without trying first how many fill a sample: for calls that take seconds.
    """
    peaks = {name: peak_of(call) for name, call in calls.items()}
    repeats = {name: 1 if single_calls else _repeats(call) for name, call in calls.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    for _ in range(rounds):
        for name, call in calls.items():
            seconds, cpu_seconds = _sample(call, repeats[name])
            wall[name].append(seconds)
            cpu[name].append(cpu_seconds)
    return {name: Timing(wall[name], cpu[name], peaks[name]) for name in calls}


def ratios(top: Timing, bottom: Timing, *, cpu: bool = False) -> list[float]:
    """top / bottom, round by round."""
    pairs = zip(top.cpu, bottom.cpu, strict=True) if cpu else zip(top.wall, bottom.wall, strict=True)
    return [a / b for a, b in pairs]


def peak_of(call: Callable[[], object]) -> int:
    """Bytes by which the process' resident memory rose at most during one call. The result is dropped."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what earlier calls left free in the heap would hide what this one takes
    Path("/proc/self/clear_refs").write_text(_CLEAR_PEAK)
    before = _memory("VmRSS")
    call()
    return max(0, _memory("VmHWM") - before)


def tree_cpu_seconds(process: psutil.Process) -> float:
    """User and system, of a process and its children, ended ones included."""
    living = [process, *process.children(recursive=True)]
    return float(sum(sum(each.cpu_times()[:2]) for each in living) + sum(process.cpu_times()[2:4]))


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def _repeats(call: Callable[[], object]) -> int:
    """How many calls fill one sample. Tried with more and more of them: a first call, caches cold, says nothing."""
    repeats = 1
    while True:
        seconds, _ = _sample(call, repeats)
        if seconds * repeats >= _SAMPLE_SECONDS:
            return repeats
        repeats = min(2 * repeats, max(repeats + 1, round(_SAMPLE_SECONDS / max(seconds, 1e-9))))


def _sample(call: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Wall and CPU seconds per call."""
    cpu = time.process_time()
    wall = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats

"""Memory of every process over half an hour of training: `python -m benchmarks soak`; not part of `make bench`.

The demo's model with random weights (see `rig.real_run`), two generators, asynchronous, checkpoints as in the
demo. Each process' resident memory, children included, is read every second; a figure is its median over the last fifth
of the run relative to the second fifth (the first is warm-up). Draws docs/images/soak.png.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.rig.figures import Figure, at_most
from benchmarks.rig.harness import Settings
from benchmarks.rig.performance_page import DOCS
from benchmarks.rig.real_run import RealRun
from vcppo.common.run_folder import RunFolder

MINUTES = 30.0
QUICK_MINUTES = 0.5
FLAT = 1.02
Samples = dict[str, list[tuple[float, float]]]  # process -> (minutes, MiB)


class Watch:
    """Reads the memory of a run's processes; once the time is over it asks the learner to stop (a checkpoint, exit)."""

    def __init__(self, folder: RunFolder, minutes: float) -> None:
        self.samples: Samples = {}
        self._folder = folder
        self._minutes = minutes
        self._started: float | None = None
        self._stopped = False

    def __call__(self) -> None:
        pids = self._pids()
        if "learner" not in pids or not self._folder.metrics_file("learner").exists():
            return
        now = time.monotonic()
        self._started = self._started or now
        minutes = (now - self._started) / 60
        for name, pid in pids.items():
            self.samples.setdefault(name, []).append((minutes, _tree_mib(pid)))
        if minutes > self._minutes and not self._stopped:
            self._stopped = True
            psutil.Process(pids["learner"]).terminate()

    def _pids(self) -> dict[str, int]:
        """The processes the launcher said it started, that live."""
        path = self._folder.log_file("launcher")
        if not path.exists():
            return {}
        events = (json.loads(line) for line in path.read_text().splitlines())
        started = {event["process"]: int(event["pid"]) for event in events if event["event"] == "process_started"}
        return {name: pid for name, pid in started.items() if psutil.pid_exists(pid)}


def run(settings: Settings) -> list[Figure]:
    """Half an hour, or half a minute."""
    with tempfile.TemporaryDirectory() as folder:
        runs = RealRun(Path(folder))
        watch = Watch(runs.folder("soak"), QUICK_MINUTES if settings.quick else MINUTES)
        data = runs.up("soak", "rl.num_steps=1000000", "learner.checkpoint_every=5", on_tick=watch, stops_early=True)
    if not settings.quick:
        _draw(watch.samples)
    steps, tokens = len(data.rl), sum(row["tokens/step"] for row in data.rl)
    return [
        _figure(name, samples, f"{steps} steps, {tokens / 1e6:.1f} M tokens") for name, samples in watch.samples.items()
    ]


def _figure(name: str, samples: list[tuple[float, float]], note: str) -> Figure:
    sizes = [mib for _, mib in samples]
    fifth = max(1, len(sizes) // 5)
    early, late = sizes[fifth : 2 * fifth] or sizes, sizes[-fifth:]
    middle = statistics.median(early)
    return Figure.of(
        f"memory of {name} after {samples[-1][0]:.0f} minutes",
        "its memory in the second fifth of the run",
        [mib / middle for mib in late],
        goal=at_most(FLAT),
        absolute=f"{statistics.median(late):.0f} MiB",
        peak_mib=max(sizes),
        note=note,
    )


def _tree_mib(pid: int) -> float:
    """Resident MiB of a process and its children; 0 when it has just ended."""
    try:
        process = psutil.Process(pid)
        return float(sum(each.memory_info().rss for each in [process, *process.children(recursive=True)])) / 2**20
    except psutil.NoSuchProcess:
        return 0.0


def _draw(samples: Samples) -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(8, 3.5), layout="constrained")
    axes = canvas.subplots()
    for name, points in samples.items():
        axes.plot(*zip(*points, strict=True), label=f"{name}, {points[-1][1]:.0f} MiB", linewidth=1)
    axes.set(xlabel="minutes", ylabel="resident memory, MiB", yscale="log")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    canvas.savefig(DOCS / "images" / "soak.png", dpi=110)

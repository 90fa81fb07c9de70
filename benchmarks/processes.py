"""More processes: 1, 2, 4 generators and 1, 2 learner ranks. A straight line costs the same CPU a token, however many.

Generators: synchronous runs of the demo with random weights (see `benchmarks.real_run`) on two cores; CPU seconds of
all generator processes over the tokens they made, engines' start-up left out. With more of them each has a smaller part
of the batch, so what a generator costs beside its tokens shows. The pause of a weight update is reported beside it.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from pathlib import Path

import psutil

from benchmarks.figures import Figure, at_most
from benchmarks.harness import Settings
from benchmarks.real_run import RealRun
from common.run_folder import RunFolder
from deploy.run_data import RunData

NUM_GENERATORS = (1, 2, 4)
NUM_STEPS = 16
WARM_UP_STEPS = 3
NO_KNEE = 1.25


class CpuWatch:
    """CPU seconds of a run's generators against the number of steps done, read about once a second."""

    def __init__(self, folder: RunFolder) -> None:
        self.readings: list[tuple[int, float]] = []
        self._folder = folder

    def __call__(self) -> None:
        metrics, log = self._folder.metrics_file("learner"), self._folder.log_file("launcher")
        if not metrics.exists() or not log.exists():
            return
        num_steps = metrics.read_text().count('"time/step"')
        events = [json.loads(line) for line in log.read_text().splitlines()]
        pids = [e["pid"] for e in events if e["event"] == "process_started" and e["process"].startswith("generator")]
        try:
            seconds = sum(sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids)
        except psutil.NoSuchProcess:  # the run is over
            return
        self.readings.append((num_steps, seconds))

    def seconds_per_token(self, data: RunData) -> float:
        """Between the first reading after the warm-up and the last one."""
        readings = [(steps, seconds) for steps, seconds in self.readings if steps >= WARM_UP_STEPS]
        (first, before), (last, after) = readings[0], readings[-1]
        return (after - before) / sum(row["tokens/step"] for row in data.rl[first:last])


def run(settings: Settings) -> list[Figure]:
    """One run for each number of generators."""
    numbers = NUM_GENERATORS[: settings.size(len(NUM_GENERATORS), 1)]
    num_steps = settings.size(NUM_STEPS, 8)
    with tempfile.TemporaryDirectory() as folder:
        runs = RealRun(Path(folder))
        costs, pauses = {}, {}
        for number in numbers:
            name = f"generators-{number}"
            watch = CpuWatch(runs.folder(name))
            overrides = [f"generator.num_generators={number}", "rl.max_staleness=0", f"rl.num_steps={num_steps}"]
            data = runs.up(name, *overrides, on_tick=watch)
            costs[number] = watch.seconds_per_token(data)
            pauses[number] = statistics.median(row["time/pause"] for row in data.rl[WARM_UP_STEPS:-1])
    return [figure for number in numbers for figure in _figures(number, costs, pauses)]


def _figures(number: int, costs: dict[int, float], pauses: dict[int, float]) -> list[Figure]:
    return [
        Figure(
            f"generator CPU per token, {number} generators", "1 generator", costs[number] / costs[1],
            goal=at_most(NO_KNEE) if number > 1 else None, absolute=f"{costs[number] * 1e6:.0f} µs",
        ),
        Figure(
            f"pause of a weight update, {number} generators", "1 generator", pauses[number] / pauses[1],
            absolute=f"{pauses[number] * 1e3:.0f} ms",
            note="on two cores: generators load their weights in turn" if number == max(costs) else "",
        ),
    ]  # fmt: skip

"""More processes: 1 and 4 generators and 1, 2 learner ranks. Is it a straight line?

Generators: synchronous runs of the demo with random weights (see `rig.real_run`) on two cores; CPU seconds of
all generator processes over the tokens they made, engines' start-up left out. The batch grows with their number, 32
responses for each, so that every engine has the same to do: split among more of them, one batch would leave each with
fewer sequences at a time, and an engine's step costs about the same for few as for many. The pause of a weight update
is reported beside it.

Ranks: steps of one batch (see `rig.rank_worker`), each rank on a core of its own; core-seconds, that is wall
seconds times ranks, with two over with one. 1 is a straight line.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil

from benchmarks import REPOSITORY
from benchmarks.rig.figures import NO_KNEE, Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings, tree_cpu_seconds
from benchmarks.rig.real_parts import write_model
from benchmarks.rig.real_run import RealRun
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_data import Row

NUM_GENERATORS = (1, 4)
NUM_STEPS = 7
WARM_UP_STEPS = 3
RESPONSES_EACH = 32
RANK_MODEL = {  # 2 million weights: a step of seconds
    "model_type": "llama", "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6,
    "num_key_value_heads": 6, "intermediate_size": 576, "tie_word_embeddings": True, "max_position_embeddings": 2048,
}  # fmt: skip
RANK_DEADLINE_SECONDS = 240.0


class CpuWatch:
    """CPU seconds of a run's generators against the number of steps done, read some times a second."""

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
            seconds = sum(tree_cpu_seconds(psutil.Process(pid)) for pid in pids)
        except psutil.NoSuchProcess:  # the run is over
            return
        self.readings.append((num_steps, seconds))

    def seconds_per_token(self, steps: Sequence[Row]) -> float:
        """Between the first reading after the warm-up and the last one; `steps` has a row for each."""
        readings = [reading for reading in self.readings if reading[0] >= WARM_UP_STEPS]
        (first, before), (last, after) = readings[0], readings[-1]
        return float((after - before) / sum(row["tokens/step"] for row in steps[first:last]))


def run(settings: Settings) -> list[Figure]:
    """One run for each number of generators, and one for each number of ranks.

    To see that it works the ranks are enough: `overlap` brings such a run up, and the rest has a
    unit test.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        return _ranks(settings, folder) if settings.quick else _generators(folder) + _ranks(settings, folder)


def _generators(folder: Path) -> list[Figure]:
    runs = RealRun(folder)
    costs, pauses = {}, {}
    for number in NUM_GENERATORS:
        name = f"generators-{number}"
        watch = CpuWatch(runs.folder(name))
        overrides = [
            f"generator.num_generators={number}", f"rl.batch_size={number * RESPONSES_EACH}", "rl.max_staleness=0",
            f"rl.num_steps={NUM_STEPS}",
        ]  # fmt: skip
        data = runs.up(name, *overrides, on_tick=watch, tick_seconds=0.25)
        costs[number] = watch.seconds_per_token(data.rl)
        pauses[number] = statistics.median(row["time/pause"] for row in data.rl[WARM_UP_STEPS:-1])
    return [figure for number in NUM_GENERATORS for figure in _figures(number, costs, pauses)]


def _ranks(settings: Settings, folder: Path) -> list[Figure]:
    smaller = {"num_hidden_layers": 1} if settings.quick else {}
    model = write_model(folder / "ranks", RANK_MODEL | smaller, "float32")
    rounds = settings.rounds(2)
    two = _rank_seconds(2, model, rounds, folder / "ranks-2.json")
    one = two if settings.quick else _rank_seconds(1, model, rounds, folder / "ranks-1.json")
    return [
        Figure.of(
            "core-seconds of a learner step, 2 ranks", "1 rank", [2 * b / a for a, b in zip(one, two, strict=True)],
            goal=at_most(NO_KNEE),
            absolute=f"{seconds_text(statistics.median(two))} for {seconds_text(statistics.median(one))}",
        )
    ]  # fmt: skip


def _rank_seconds(num_ranks: int, model: Path, rounds: int, result: Path) -> list[float]:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    worker = ["benchmarks.rig.rank_worker", str(model), str(rounds), str(result)]
    command = [sys.executable, "-m", *torchrun, "-m", *worker]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    subprocess.run(command, cwd=REPOSITORY, env=os.environ | threads, check=True, timeout=RANK_DEADLINE_SECONDS)
    seconds: list[float] = json.loads(result.read_text())
    return seconds


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

"""Asynchronous against synchronous: the same run with ``rl.max_staleness`` 1 and 0, two cores, one for each side.

One generator and one learner, each on a core of its own, random weights: every step is the same work (see
`rig.real_run`). In the synchronous run the learner waits while the batch is generated and the generator while it
is learnt from, so its phases give both sides' own times: *generate* is the wait for the batch, *learn* the rest of the
step. Asynchronous, a step can't be shorter than the slower of the two. Model and batch are the demo's. With 48
sequences in flight both sides take about as long (with 24, where the two cores are whole ones), which is where overlap
can gain most: 2 ×.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

from benchmarks.rig.figures import Figure, at_least, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_run import RealRun
from vcppo.deploy.run.run_data import Row, RunData

NUM_STEPS = 10
WARM_UP_STEPS = 3  # compilation, caches, and a first batch that nothing overlaps


def run(settings: Settings) -> list[Figure]:
    """Both runs, one after the other."""
    num_steps = settings.size(NUM_STEPS, WARM_UP_STEPS + 2)
    with tempfile.TemporaryDirectory() as folder:
        runs = RealRun(Path(folder))
        overrides = [
            "generator.num_generators=1",
            "generator.max_in_flight=48",
            f"rl.num_steps={num_steps}",
            *_sizes(settings),
        ]
        synchronous = _steps(runs.up("sync", "rl.max_staleness=0", *overrides))
        # To see that it works one run is enough: the other differs in one setting.
        asynchronous = synchronous if settings.quick else _steps(runs.up("async", "rl.max_staleness=1", *overrides))
    _check_same_work(synchronous, asynchronous)
    return _figures(synchronous, asynchronous)


def _sizes(settings: Settings) -> list[str]:
    return ["rl.batch_size=32", "sampling.max_response_tokens=24"] if settings.quick else []


def _steps(data: RunData) -> list[Row]:
    """The last step is left out: nothing is generated beside it, and no weights are sent."""
    return data.rl[WARM_UP_STEPS:-1]


def _check_same_work(synchronous: list[Row], asynchronous: list[Row]) -> None:
    tokens = [statistics.mean(row["tokens/step"] for row in rows) for rows in (synchronous, asynchronous)]
    if abs(tokens[0] / tokens[1] - 1) > 0.05:
        raise AssertionError(f"not the same work: {tokens[0]:.0f} and {tokens[1]:.0f} tokens a step")


def _figures(synchronous: list[Row], asynchronous: list[Row]) -> list[Figure]:
    generate = [row["time/claim"] for row in synchronous]
    learn = [row["time/step"] - row["time/claim"] for row in synchronous]
    both, step = [row["time/step"] for row in synchronous], [row["time/step"] for row in asynchronous]
    slower = max(statistics.median(generate), statistics.median(learn))
    sides = f"generate {seconds_text(statistics.median(generate))}, learn {seconds_text(statistics.median(learn))}"
    middle = statistics.median(step)
    waits = statistics.median(row["time/claim"] for row in asynchronous)
    together = (
        f"{sides}; side by side the learner waits {seconds_text(waits)} and learns {seconds_text(middle - waits)}"
    )
    return [
        Figure.of(
            "asynchronous training, steps per second", "synchronous, same work", [whole / middle for whole in both],
            goal=at_least(1.7), absolute=f"{seconds_text(middle)} for {seconds_text(statistics.median(both))} a step",
        ),
        Figure.of(
            "asynchronous training, time per step", "the slower side alone", [each / slower for each in step],
            goal=at_most(1.1), absolute=seconds_text(middle), note=together,
        ),
        Figure.of(
            "trajectories made by more than one policy version", "", [
                100 * row["staleness/mixed_version_fraction"] for row in asynchronous
            ], unit="%",
        ),
    ]  # fmt: skip

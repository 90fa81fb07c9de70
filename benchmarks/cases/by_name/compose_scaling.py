"""Throughput under docker compose while generators are added and taken away: `python -m benchmarks compose_scaling`.

`docker compose up --scale generator=N` for N = 1, 2, 4, 1 on a running application (the demo's model with random
weights that stay as they are, so every step is much the same work). Two cores do not hold four engines
beside a learner, so each generator has a sixth of a core: what is measured is whether the application makes use of
a generator that joins, and does without one that leaves. A figure is tokens trained a second, with N relative to N
times those with the first one alone. Wants a Docker engine and the time of a build; by name only.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from benchmarks.rig.figures import Figure, at_least
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import DEMO
from tests.compose.rig import Application, Record, application, built_image, no_engine

SCALES = (1, 2, 4, 1)
WINDOWS = 4
STEPS_A_WINDOW = 3  # steps take turns: what one batch leaves in flight, the next has already
SHARE_OF_A_CORE = "0.16"
SETTINGS = (
    "sft.phases=[{steps: 1, batch_size: 1, learning_rate: 1.0e-9}]",
    "value_pretraining.num_trajectories=0", "critic.init=policy", "rl.num_steps=1000000", "rl.batch_size=64",
    "rl.actor_learning_rate=1e-9", "rl.critic_learning_rate=1e-9", "learner.checkpoint_every=1000",
    "generator.max_in_flight=16",
)  # fmt: skip


def run(settings: Settings) -> list[Figure]:
    """One application, scaled while it runs. Raises RuntimeError without an engine."""
    scales = SCALES[: settings.size(len(SCALES), 2)]
    num_windows = settings.size(WINDOWS, 1)
    if reason := no_engine():
        raise RuntimeError(f"compose_scaling wants a Docker engine: {reason}")
    image = f"vcppo:benchmark-{os.getpid()}"
    with built_image(image), tempfile.TemporaryDirectory() as folder, _running(image, Path(folder)) as app:
        rates = [_rates(app, count, num_windows) for count in scales]
    alone = statistics.median(rates[0])
    return [
        _figure(turn, count, samples, alone) for turn, (count, samples) in enumerate(zip(scales, rates, strict=True))
    ]


def _figure(turn: int, count: int, samples: list[float], alone: float) -> Figure:
    again = ", again" if turn and count == 1 else ""
    return Figure.of(
        f"tokens trained a second, {count} generator{'s' if count > 1 else ''}{again}, under compose",
        f"{count} × those with the first one alone",
        [sample / (count * alone) for sample in samples],
        goal=at_least(0.8) if turn else None,
        absolute=f"{statistics.median(samples):,.0f} tokens/s",
        note=f"each generator on {SHARE_OF_A_CORE} of a core" if not turn else "",
    )


@contextmanager
def _running(image: str, folder: Path) -> Iterator[Application]:
    chosen = {
        "CONFIG": str(DEMO),
        "GENERATORS": "1",
        "LEARNER_THREADS": "1",
        "SET": " ".join(f'"{each}"' for each in SETTINGS),
    }
    with application("scaling", image, folder / "lines.jsonl", **chosen) as app:
        app.up()
        yield app


def _rates(app: Application, count: int, num_windows: int) -> list[float]:
    """Tokens a second in windows of steps, from the first that `count` generators had all weights for."""
    app.up("--no-recreate", "--scale", f"generator={count}")
    app.wait_for_generators(count)
    app.docker("update", "--cpus", SHARE_OF_A_CORE, *app.containers("generator"))  # engines come up on a whole one
    mark = len(app.lines)
    needed = 1 + num_windows * STEPS_A_WINDOW
    app.wait("steps to measure", lambda: len(app.records("step", mark)) > needed, seconds=400)
    steps = app.records("step", mark)[1 : 1 + needed]  # the first began with the number before
    bounds = range(0, needed, STEPS_A_WINDOW)
    return [_rate(steps[first : last + 1]) for first, last in pairwise(bounds)]


def _rate(steps: list[Record]) -> float:
    """From the end of the first to the end of the last."""
    num_tokens = sum(float(step["tokens_per_second"]) * float(step["seconds"]) for step in steps[1:])
    return num_tokens / (_end(steps[-1]) - _end(steps[0]))


def _end(step: Record) -> float:
    return datetime.fromisoformat(step["time"]).timestamp()

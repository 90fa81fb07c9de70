"""A run's own measurements as the workload of a simulation.

| of the workload | from |
|---|---|
| response lengths | the samples of the run |
| learner's seconds a token, checkpoints, weight updates | its metrics, step by step; the first step is left out |
| the rest of a step | the time from one step's line to the next, without its phases |
| tokens a second by sequences in flight, less in training | lines of the generators' metrics, by least squares |
| Redis | `python -m benchmarks.cases.by_name.store_capacity` on one core (docs/scaling.md), not this run |
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise
from statistics import fmean, median

import numpy as np
import pyarrow.parquet as parquet
from scipy.optimize import nnls

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.common.records.simulated import Workload
from vcppo.common.run_folder import RunFolder
from vcppo.deploy.run.run_data import Row, RunData, column, seconds_between

LEAST_STEPS = 4
STORE_SECONDS, STORE_SECONDS_PER_TOKEN = 99e-6, 20e-9  # 109 us at 500 tokens, 430 us at 16,384
HEARTBEAT_COST_SECONDS, HEARTBEAT_COST_PER_LEASE = 20e-6, 2.5e-6  # 100 us with 32 leases
_MOST_LOST = 0.9
_TRAINING = ("time/critic_passes", "time/values", "time/old_log_probs", "time/update")
_REST = ("time/claim", "time/broadcast", "time/checkpoint", "time/evaluation")


class NotMeasured(VcppoError):
    """The run does not have what a simulation needs."""


def workload_of(config: VcppoConfig, data: RunData, pause_per_generator: float) -> Workload:
    """The run as it was, with the settings of `config`.

    Args:
        config: the run's, perhaps with other values of rl.batch_size, rl.max_staleness, generator.max_in_flight.
        pause_per_generator: seconds that a weight update stands still longer for each generator.

    Raises:
        NotMeasured: too few steps, no samples, or generators that wrote no metrics.
    """
    rows = data.rl[1:]
    if len(rows) < LEAST_STEPS:
        raise NotMeasured(
            f"{data.folder.path} has {len(data.rl)} RL steps: a simulation needs {LEAST_STEPS + 1}: train it for longer"
        )
    num_measured = len(data.generators)
    base, per_sequence, lost = generator_speed(data)
    in_groups = config.algorithm.has_group_baseline or config.rl.dynamic_sampling is not None
    slots = config.generator.max_in_flight
    pauses = [max(0.0, pause - pause_per_generator * num_measured) for pause in column(rows, "time/pause")]
    return Workload(
        num_generators=config.generator.num_generators,
        slots=slots,
        ahead=config.generator.num_ahead,
        batch_size=config.rl.batch_size,
        group_size=config.rl.group_size if in_groups else 1,
        max_staleness=config.rl.max_staleness,
        straggler=config.rl.straggler,
        lengths=response_lengths(data.folder),
        token_base_seconds=base,
        token_seconds_per_sequence=per_sequence,
        lost_to_training=lost,
        learner_seconds_per_token=[_seconds(row, _TRAINING) / response_tokens(row) for row in rows],
        other_seconds=other_seconds(data.rl),
        checkpoint_seconds=median(column(rows, "time/checkpoint") or [0.0]),
        checkpoint_every=config.learner.checkpoint_every,
        broadcast_seconds=max(0.0, fmean(column(rows, "time/broadcast") or [0.0]) - fmean(pauses or [0.0])),
        pause_seconds=pauses or [0.0],
        pause_seconds_per_generator=pause_per_generator,
        store_seconds=STORE_SECONDS,
        store_seconds_per_token=STORE_SECONDS_PER_TOKEN,
        heartbeat_seconds=config.generator.heartbeat_seconds,
        heartbeat_cost_seconds=HEARTBEAT_COST_SECONDS + HEARTBEAT_COST_PER_LEASE * slots,
    )


def response_lengths(folder: RunFolder) -> list[int]:
    """Tokens of each sampled response, of every step but the first. Raises NotMeasured."""
    paths = sorted(folder.samples.glob("step-*.parquet"))[1:]
    lengths = [
        length for path in paths for length in parquet.read_table(path, columns=["length"])["length"].to_pylist()
    ]
    if not lengths:
        raise NotMeasured(f"{folder.samples} has no samples of RL steps: response lengths are drawn from them")
    return [max(1, int(length)) for length in lengths]


def generator_speed(data: RunData) -> tuple[float, float, float]:
    """(base, per sequence, lost to training), as in `Workload`.

    In each line's time n sequences make `tokens` together, at a lower pace while the learner trained:

        n * (seconds - lost * trained) = tokens * base + tokens * n * per sequence

    Tokens are those of responses that ended, so they are what is noisy: first `lost` is found with them as what is
    explained, then the other two, neither below 0. Then these are scaled so that all lines together take as long as
    they took.

    Raises:
        NotMeasured: too few lines.
    """
    slots = data.config.generator.max_in_flight
    training = [(_at(row) - _seconds(row, _TRAINING), _at(row)) for row in data.rl]
    equations = [
        (tokens, tokens * num, num * _overlap(_at(before), _at(row), training), num * seconds)
        for rows in data.generators.values()
        for before, row in pairwise(rows)
        if _is_of_rl(before, data.rl) and (tokens := row.get("generator/tokens") or 0.0)
        if (seconds := seconds_between(before, row) - _paused(before, row)) > 0
        if (num := (_in_flight(before, slots) + _in_flight(row, slots)) / 2)
    ]
    if len(equations) < LEAST_STEPS:
        raise NotMeasured(f"{data.folder.metrics}: generators wrote too few lines while RL steps were done")
    table = np.asarray(equations)
    tokens, sampled, trained, seconds = table.T
    speed, slower = np.linalg.lstsq(np.stack([seconds, -trained], axis=1), tokens, rcond=None)[0]
    lost = float(np.clip(slower / speed, 0.0, _MOST_LOST)) if speed > 0 else 0.0
    at_full_pace = seconds - lost * trained
    (base, per_sequence), _ = nnls(table[:, :2], at_full_pace)
    scale = at_full_pace.sum() / (tokens * base + sampled * per_sequence).sum()
    return float(base * scale), max(1e-9, float(per_sequence * scale)), lost


def response_tokens(row: Row) -> float:
    """Trained in a step; `tokens/step` has prompts, too."""
    return max(1.0, float(row["length/mean"]) * float(row["reward/num_responses"]))


def other_seconds(rows: Sequence[Row]) -> float:
    """Of a step, what is in none of its phases: writing records, issuing. The median."""
    return median(
        max(0.0, seconds_between(before, row) - _seconds(row, _TRAINING) - _seconds(row, _REST))
        for before, row in pairwise(rows)
    )


def _seconds(row: Row, names: Sequence[str]) -> float:
    return sum(row.get(name) or 0.0 for name in names)


def _at(row: Row) -> float:
    return datetime.fromisoformat(row["time"]).timestamp()


def _overlap(begin: float, end: float, spans: Sequence[tuple[float, float]]) -> float:
    """Seconds of begin … end that lie in one of the spans."""
    return sum(max(0.0, min(end, last) - max(begin, first)) for first, last in spans)


def _in_flight(row: Row, slots: int) -> float:
    return min(slots, row.get("generator/in_flight") or 0.0)


def _paused(before: Row, row: Row) -> float:
    return max(0.0, (row.get("generator/paused") or 0.0) - (before.get("generator/paused") or 0.0))


def _is_of_rl(row: Row, steps: Sequence[Row]) -> bool:
    return seconds_between(steps[0], row) > 0 and seconds_between(row, steps[-1]) > 0

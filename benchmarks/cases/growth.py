"""What grows with a run: trajectories of 1k to 32k tokens, and 10² to 10⁵ of them buffered. Is it a straight line?

Tokens: CPU seconds per token, of encoding + decoding and of the whole path of `rig.data_path` (sender, ZeroMQ,
buffer, Redis, learner; all processes), at each length over that at the shortest. A fixed part per trajectory makes it
fall with the length; where it rises, something grows faster than the trajectory.

Buffered: stores filled to 10², 10³, 10⁴, 10⁵ trajectories, each with a Redis of its own, then what a run does with
them in turn, Redis and client together: appending, claiming and committing a batch (the same batch whatever lies
there) and the ledger should cost what they cost at 10²; looking at all that is outstanding, and Redis' memory, as much
an entry as at 10².

1 to 4 generators and 1 to 2 learner ranks: `cases.processes`. Asserted: what arrives is what was sent; the ledger
is exact and counts what was filled in.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from benchmarks.cases.wire import make_trajectory, through_the_wire
from benchmarks.rig.data_path import DataPath, check, cpu_seconds
from benchmarks.rig.figures import NO_KNEE, Figure, at_most, seconds_text
from benchmarks.rig.harness import Settings, measure
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.store.ledger import BufferEntry

LENGTHS = (1024, 2048, 4096, 8192, 16_384, 32_768)
FILLS = (100, 1_000, 10_000, 100_000)
ROUND_TOKENS = 2**20  # a round of any length carries as many
BATCH = 64
SHORT = 64  # tokens of a buffered trajectory: what is counted is how many there are
_FILL_CHUNK = 1_000

Costs = dict[str, list[float]]  # operation -> seconds (or bytes) a round


def run(settings: Settings) -> list[Figure]:
    lengths = LENGTHS[: settings.size(len(LENGTHS), 2)]
    fills = FILLS[: settings.size(len(FILLS), 2)]
    with tempfile.TemporaryDirectory() as folder:
        with DataPath(Path(folder), "lengths") as path:
            carried = _carried(path, lengths, settings.size(ROUND_TOKENS, 2**16), settings.rounds(5))
        kept = _at_fills(Path(folder), fills, settings.rounds(9))
    coded = measure(_codecs(lengths), settings.rounds(9))
    per_token = {length: [seconds / length for seconds in coded[str(length)].cpu] for length in lengths}
    return [
        *_by_length("encode + decode", per_token),
        *_by_length("sender to learner, CPU of all processes", carried),
        *[figure for operation in kept[fills[0]] for figure in _by_fill(operation, kept)],
    ]


def _codecs(lengths: tuple[int, ...]) -> dict[str, Callable[[], object]]:
    def codec(trajectory: Trajectory) -> Callable[[], object]:
        return lambda: through_the_wire(trajectory)

    return {str(length): codec(make_trajectory("rl-0", length)) for length in lengths}


def _carried(path: DataPath, lengths: tuple[int, ...], num_tokens: int, rounds: int) -> dict[int, list[float]]:
    """CPU seconds a token through the whole path; lengths take turns, the first turn warms up."""
    costs: dict[int, list[float]] = {length: [] for length in lengths}
    for _ in range(rounds + 1):
        for length in lengths:
            trajectories = path.lease(num_tokens // length, make_trajectory("rl-0", length))
            before = cpu_seconds(path.pids)
            batches = path.carry(trajectories, len(trajectories) // 2)
            costs[length].append((cpu_seconds(path.pids) - before) / num_tokens)
            check(batches, trajectories)
    assert path.store.ledger().is_exact
    return {length: samples[1:] for length, samples in costs.items()}


def _at_fills(folder: Path, fills: tuple[int, ...], rounds: int) -> dict[int, Costs]:
    """What one more batch costs in stores with so many buffered; they take turns."""
    template = make_trajectory("rl-0", SHORT)
    kept: dict[int, Costs] = {fill: {} for fill in fills}
    with ExitStack() as stack:
        paths = {fill: stack.enter_context(DataPath(folder, f"fill-{fill}")) for fill in fills}
        for fill, path in paths.items():
            empty = path.store.memory().used
            while (missing := fill - path.store.ledger().buffered) > 0:
                path.store.append(_entries(path, min(missing, _FILL_CHUNK), template))
            kept[fill]["Redis' memory, an entry"] = [(path.store.memory().used - empty) / fill]
        for _ in range(rounds):
            for fill, path in paths.items():
                for operation, cost in _one_more_batch(path, fill, template).items():
                    kept[fill].setdefault(operation, []).append(cost)
        for fill, path in paths.items():
            ledger = path.store.ledger()
            assert ledger.is_exact, ledger
            assert ledger.buffered == fill, ledger
    return kept


def _one_more_batch(path: DataPath, fill: int, template: Trajectory) -> dict[str, float]:
    """CPU seconds of each operation."""
    entries = _entries(path, BATCH, template)
    ids = [entry.prompt_id for entry in entries]
    return {
        "append of a batch": _cpu(path, partial(path.store.append, entries)),
        "outstanding, an entry": _cpu(path, path.store.outstanding) / (fill + BATCH),
        "claim + commit of a batch": _cpu(path, partial(_train, path, ids)),
        "the ledger": _cpu(path, path.store.ledger, times=20),
    }


def _entries(path: DataPath, count: int, template: Trajectory) -> list[BufferEntry]:
    """Of prompts that were issued and leased for them."""
    return [BufferEntry.of(each, encode_trajectory(each)) for each in path.lease(count, template)]


def _train(path: DataPath, ids: list[str]) -> None:
    path.store.claim(ids, 1)
    path.store.commit(ids)


def _cpu(path: DataPath, do: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of Redis and this process, per call."""
    before = cpu_seconds(path.pids)
    for _ in range(times):
        do()
    return (cpu_seconds(path.pids) - before) / times


def _by_length(what: str, costs: dict[int, list[float]]) -> list[Figure]:
    shortest = min(costs)
    base = statistics.median(costs[shortest])
    return [
        Figure.of(
            f"{what}, a token, {length:,} tokens", f"{shortest:,} tokens", [cost / base for cost in samples],
            goal=at_most(NO_KNEE), absolute=f"{seconds_text(statistics.median(samples) * length)} a trajectory",
        )
        for length, samples in costs.items()
        if length > shortest
    ]  # fmt: skip


def _by_fill(operation: str, kept: dict[int, Costs]) -> list[Figure]:
    smallest = min(kept)
    base = statistics.median(kept[smallest][operation])
    figures = []
    for fill in kept:
        if fill == smallest:
            continue
        samples = kept[fill][operation]
        middle = statistics.median(samples)
        figures.append(
            Figure.of(
                f"{operation}, {fill:,} buffered", f"{smallest:,} buffered", [sample / base for sample in samples],
                goal=at_most(NO_KNEE),
                absolute=f"{middle:,.0f} bytes" if "memory" in operation else seconds_text(middle),
            )
        )  # fmt: skip
    return figures

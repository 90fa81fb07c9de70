"""Weights from a learner to real generators: how long they stand still, how fast the bytes go, what generation loses.

Real are: `python -m vcppo.generator` with vLLM, its control port, the learner's DeepSpeed engine, `WeightBroadcaster`,
gloo, the canary after each update (weights that did not arrive raise), Redis and buffer. Two runs, started at once:

- the demo model with two generators on two cores, both busy with rollouts all the time. *Pause* is from the moment
  a generator stops to the moment it goes on. *Generation lost* comes from the trajectories' own records, which say
  for each token by which version it was sampled: tokens of version v = rate x (seconds between its update and the
  next - seconds lost), a straight line whose slope and intercept are fitted over updates at changing intervals.
- a 135M-parameter shape in bfloat16 with one idle generator, a core each for learner and generator. Bytes per second
  are those of the weights over the *whole* pause, loading and packing for vLLM's kernels included, against gloo's
  bare broadcast of the same bytes between two such processes into memory that is already there, in our chunks and in
  one piece.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.gloo_peer import GlooPeer
from benchmarks.rig.figures import Figure, at_least, at_most
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import SMOLLM2_135M, Rig, demo_architecture, demo_settings, make_prompts, write_model
from vcppo.common.config import VcppoConfig
from vcppo.common.records.wire import decode_trajectory
from vcppo.learner.engine.deepspeed_engine import TrainEngine, init_distributed
from vcppo.learner.export import make_actor
from vcppo.learner.weights.broadcaster import BroadcastReport, CanaryProbe, WeightBroadcaster
from vcppo.learner.weights.canary import limit_of, mean_difference
from vcppo.learner.weights.canary_probe import make_probe

_NUM_PROBED = 80
_NUM_PROMPTS = 12_000  # more than two generators finish in the time
_INTERVALS = (0.4, 0.4, 2.0, 2.0)  # seconds between updates, in turn: each set of weights runs for both
_QUICK_INTERVALS = (0.1, 0.1, 0.3, 0.3)


def run(settings: Settings) -> list[Figure]:
    init_distributed("cpu")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        demo = stack.enter_context(_rig(folder, "demo", demo_architecture(), "float32", settings.size(2, 1)))
        if settings.quick:
            return _demo(demo, num_updates=6, intervals=_QUICK_INTERVALS)
        large = stack.enter_context(_rig(folder, "large", SMOLLM2_135M, "bfloat16", 1))
        return _demo(demo, num_updates=17, intervals=_INTERVALS) + _large(large, num_rounds=7)


def _rig(folder: Path, name: str, architecture: dict[str, Any], dtype: str, num_generators: int) -> Rig:
    model = write_model(folder / f"{name}-model", architecture, dtype)
    config = demo_settings(folder, name, model, model={"dtype": dtype}, generator={"num_generators": num_generators})
    return Rig(config)


class Learner:
    """The learner's end of one run. There are two sets of weights, and each `update` sends the one not sent last."""

    def __init__(self, rig: Rig) -> None:
        self.config: VcppoConfig = rig.config
        mine = rig.launcher.learner_spec()  # this process takes the learner's place
        os.sched_setaffinity(0, mine.cores or os.sched_getaffinity(0))
        torch.set_num_threads(int(mine.environment["OMP_NUM_THREADS"]))
        self.actor: TrainEngine = make_actor(rig.config)
        self.broadcaster = WeightBroadcaster(rig.config, rig.store, self.actor)
        self.version = 0
        self._tokens = np.random.default_rng(7).integers(4, 32, _NUM_PROBED).astype(np.int32)
        self._sets = [(self._weights(), self._score())]
        torch.manual_seed(1)
        for parameter in self.actor.module.parameters():
            parameter.data.mul_(0.9 + 0.2 * torch.rand(()).item())
        self._sets.append((self._weights(), self._score()))
        moved = mean_difference(self._sets[0][1].log_probs, self._sets[1][1].log_probs)
        if not moved > limit_of(None, self._sets[0][1], self.config.broadcast.noise_factor):
            raise AssertionError(f"log-probs differ by {moved} only: the canary would let the wrong weights pass")
        wanted = rig.config.generator.num_generators
        rig.wait(lambda: len(rig.store.members("generator")) == wanted, f"{wanted} generators registered")

    def update(self) -> BroadcastReport:
        """Broadcast; the canary compares. Raises when a generator does not run the new weights."""
        self.version += 1
        weights, probe = self._sets[self.version % 2]
        for parameter, values in zip(self.actor.module.parameters(), weights, strict=True):
            parameter.data.copy_(values)
        report = self.broadcaster.broadcast(self.version, probe)
        if report.dropped or len(report.members) != self.config.generator.num_generators:
            raise AssertionError(f"not every generator took the weights: {report}")
        return report

    def probe(self, *, other: bool = False) -> CanaryProbe:
        """Of the weights sent last; `other`: of those that were not."""
        return self._sets[(self.version + other) % 2][1]

    def _weights(self) -> list[torch.Tensor]:
        return [parameter.detach().clone() for parameter in self.actor.module.parameters()]

    def _score(self) -> CanaryProbe:
        probe = make_probe(self.actor, [self._tokens.tolist()], self.config)
        assert probe is not None
        return probe


def _demo(rig: Rig, num_updates: int, intervals: Sequence[float]) -> list[Figure]:
    rig.start_generators()
    learner = Learner(rig)
    rig.store.issue(make_prompts(rig.config, _NUM_PROMPTS, rig.config.sampling.max_response_tokens))
    rig.wait(lambda: len(rig.store.outstanding()) > 0, "rollouts under way")
    learner.update()  # builds the group
    started: list[float] = []
    reports: list[BroadcastReport] = []
    for index in range(num_updates):
        end = time.monotonic() + intervals[index % len(intervals)]
        rig.wait(lambda end=end: time.monotonic() >= end, "the interval")  # type: ignore[misc]
        started.append(time.monotonic())
        reports.append(learner.update())
    pauses = [report.pause_seconds for report in reports]
    lost, uncertain = _lost_per_update(_tokens_by_version(rig), started)
    learner.broadcaster.close()
    for spec in rig.launcher.generator_specs():
        rig.end(spec.name)  # they would go on with what is queued
    pause = statistics.median(pauses)
    num = rig.config.generator.num_generators
    what = f"weight update, demo model, {num} busy generators"
    return [
        Figure.of(f"{what}: pause", "", [1e3 * p for p in pauses], unit="ms", goal=at_most(120)),
        Figure(
            f"{what}: generation lost per update",
            "the pause",
            lost / pause,
            goal=at_most(2),
            absolute=f"{1e3 * lost:.0f} ± {1e3 * uncertain:.0f} ms",
            note="± one standard error of the fit; below 0 it is noise",
        ),
    ]


def _tokens_by_version(rig: Rig) -> Counter[int]:
    """Tokens of each policy version, once every rollout now in flight has ended."""
    in_flight = set(rig.store.lease_owners())
    rig.wait(lambda: not in_flight & set(rig.store.lease_owners()), "rollouts in flight have ended")
    ids = [item.prompt_id for item in rig.store.outstanding() if item.state == "buffered"]
    counts: Counter[int] = Counter()
    for payload in rig.store.payloads(ids):
        for span in decode_trajectory(payload).version_spans:
            counts[span.version] += span.count
    return counts


def _lost_per_update(tokens: Counter[int], started: list[float]) -> tuple[float, float]:
    """Seconds, and their standard error. ``started[i]``: when the update to version i + 2 began.

    The mean of a fit for each set of weights, of which each has a rate of its own.
    """
    periods = np.diff(started)
    counts = np.asarray([tokens[version] for version in range(2, 2 + len(periods))])
    lost, variances = [], []
    for parity in (0, 1):
        periods_of, counts_of = periods[parity::2], counts[parity::2]
        rate, offset = np.polyfit(periods_of, counts_of, 1)
        residuals = counts_of - (rate * periods_of + offset)
        spread = float(residuals @ residuals) / max(1, len(counts_of) - 2)
        middle = float(np.mean(periods_of))
        at_zero = 1 / len(counts_of) + middle**2 / float(((periods_of - middle) ** 2).sum())
        lost.append(-offset / rate)
        variances.append(spread * at_zero / rate**2)
    return float(np.mean(lost)), float(np.sqrt(sum(variances)) / 2)


def _large(rig: Rig, num_rounds: int) -> list[Figure]:
    (spec,) = rig.launcher.generator_specs()
    generator_core = min(spec.cores or os.sched_getaffinity(0))
    rig.start_generators()
    learner = Learner(rig)
    source = [tensor for _, tensor in learner.actor.weight_source()]
    num_bytes = sum(tensor.nbytes for tensor in source)
    copy = [torch.empty_like(tensor) for tensor in source]
    whole = [torch.zeros(num_bytes, dtype=torch.uint8)]
    chunks = _cut(source, int(rig.config.broadcast.packed_buffer_mib * 2**20))
    learner.update()
    seconds: dict[str, list[float]] = {name: [] for name in ("update", "chunks", "whole", "memcpy")}
    with GlooPeer(generator_core) as peer:
        for _ in range(num_rounds):
            seconds["update"].append(learner.update().pause_seconds)
            seconds["chunks"].append(peer.seconds(chunks))
            seconds["whole"].append(peer.seconds(whole))
            began = time.perf_counter()
            for into, tensor in zip(copy, source, strict=True):
                into.copy_(tensor)
            seconds["memcpy"].append(time.perf_counter() - began)
    learner.broadcaster.close()
    rate = num_bytes / statistics.median(seconds["update"]) / 1e9
    what = f"weight update, 135M shape, {num_bytes / 2**20:.0f} MiB: bytes/s over the whole pause"

    def figure(against: str, name: str, **fields: Any) -> Figure:
        shares = [100 * a / b for a, b in zip(seconds[name], seconds["update"], strict=True)]
        return Figure.of(what, against, shares, unit="%", absolute=f"{rate:.2f} GB/s", **fields)

    return [
        figure("gloo's bare broadcast in the same chunks", "chunks", goal=at_least(70)),
        figure("gloo's bare broadcast in one piece", "whole"),
        figure("a memcpy of the weights", "memcpy"),
    ]


def _cut(tensors: list[torch.Tensor], buffer_bytes: int) -> list[torch.Tensor]:
    """Buffers of the sizes the product sends."""
    from vllm.distributed.weight_transfer.base import ParamMeta

    from vcppo.learner.weights.gloo_trainer import cut_chunks

    counts = cut_chunks([ParamMeta("", t.dtype, tuple(t.shape)) for t in tensors], buffer_bytes)
    left = iter(tensors)
    return [torch.zeros(sum(next(left).nbytes for _ in range(count)), dtype=torch.uint8) for count in counts]

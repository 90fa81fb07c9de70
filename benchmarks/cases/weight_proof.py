"""Are wrong weights in a generator found, every time, and right ones never taken for wrong? Faults on a real engine.

    python -m benchmarks.cases.weight_proof --model DIR --data FILE.jsonl --dtype bfloat16

Real are: `python -m vcppo.generator` with vLLM, its control port, the learner's DeepSpeed engine, `WeightBroadcaster`,
gloo and Redis. A worker extension of vLLM's (`rig.weight_faults`) makes one update go wrong in a chosen way.
Found means that the broadcast raises and names the generator. Two kinds of updates:

- *first updates* of an engine: before each, all of its weights are overwritten as a new engine has them, and what the
  learner knows of it is forgotten;
- *later updates* of an engine that is known, each after an optimizer step.

The figure of a try is its mean |log-prob difference| over the largest that passes; the table gives the smallest of
those that must fail and the largest of those that must pass. `python -m benchmarks weight_proof` runs a tiny model.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.rig.figures import Figure, at_least, at_most
from benchmarks.rig.harness import Settings
from benchmarks.rig.real_parts import Rig, demo_architecture, demo_settings, write_model
from benchmarks.rig.weight_faults import ORDER_VARIABLE
from vcppo.common.config import VcppoConfig
from vcppo.common.tasks import encode_prompt, load_task
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.engine.deepspeed_engine import TrainEngine, init_distributed
from vcppo.learner.export import load_tokenizer, make_actor
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.weights.broadcaster import WeightBroadcaster
from vcppo.learner.weights.canary import Answers, CanaryError, CanaryProbe, Incarnation, limit_of, mean_difference
from vcppo.learner.weights.canary_probe import make_probe, probe_tokens
from vcppo.learner.weights.transport_check import SentWeights
from vcppo.learner.weights.weight_proof import IncarnationId, WeightProof

SMALL_STEP = 1e-6


class Counts(NamedTuple):
    """Tries of each kind; None: every tensor there is."""

    left_out: int | None
    swapped: int
    flipped: int
    small_steps: int
    heads: int
    true_updates: int


FULL = Counts(None, 20, 100, 30, 6, 200)
QUICK = Counts(6, 2, 4, 2, 1, 6)


class Try(NamedTuple):
    """One update.

    Attributes:
        found: it was refused.
        share: mean |difference| over the largest that passes; NaN: it was refused before anyone was asked.
        moved: share of the answers that are not those of the update before; NaN: there was none.
        difference: mean |difference|, nats.
    """

    found: bool
    share: float
    moved: float
    difference: float


class Row(NamedTuple):
    """All tries of one kind; `must_fail`: each has to be found, or none."""

    kind: str
    must_fail: bool
    tries: list[Try]

    @property
    def num_found(self) -> int:
        return sum(each.found for each in self.tries)

    @property
    def is_right(self) -> bool:
        return all(each.found == self.must_fail for each in self.tries)

    @property
    def margin(self) -> str:
        shares = [each.share for each in self.tries if not math.isnan(each.share)]
        if not shares:
            return ""
        return f"{min(shares):.3g} at least" if self.must_fail else f"{max(shares):.3g} at most"


Add = Callable[[str, bool, Iterator[Try]], None]


class WatchedProof(WeightProof):
    """Keeps the figures behind each judgement."""

    last = Try(found=False, share=math.nan, moved=math.nan, difference=math.nan)

    def _judge(
        self, engine: IncarnationId, answers: Answers, probe: CanaryProbe, sent: SentWeights
    ) -> tuple[float, str]:
        known: Incarnation | None = self._known.get(engine)
        limit = limit_of(known, probe, self._factor)
        moved = math.nan if known is None else float(np.mean(np.asarray(answers.scores) != known.answer))
        difference, fault = super()._judge(engine, answers, probe, sent)
        self.last = Try(bool(fault), mean_difference(answers.scores, probe.log_probs) / limit, moved, difference)
        return difference, fault


class Bench:
    """The learner's end of a run with one generator, whose updates go wrong on order."""

    def __init__(self, rig: Rig, orders: Path) -> None:
        self.config: VcppoConfig = rig.config
        self._orders = orders
        tokenizer = load_tokenizer(self.config)
        source = PromptSource(self.config, load_task(self.config.task), lambda prompt: encode_prompt(tokenizer, prompt))
        self._tokens = probe_tokens(source, self.config)
        self._texts = [prompt.token_ids for prompt in source.prompts("rl", 0, 64, 0)]
        self.actor: TrainEngine = make_actor(self.config)
        self.names = [info.name for info in self.actor.weight_metadata()]
        self.is_tied = "lm_head.weight" not in self.names
        self.sizes = {name: tensor.nbytes for name, tensor in self.actor.weight_source()}
        self._broadcaster = WeightBroadcaster(self.config, rig.store, self.actor)
        self._version = 0
        self._num_steps = 0
        self._probe: CanaryProbe | None = None
        self._random = np.random.default_rng(0)
        self.seconds: list[float] = []
        self.forget()
        rig.wait(lambda: rig.store.members("generator") != [], "the generator registered")

    def forget(self) -> None:
        """Take the engine for a new one."""
        self.proof = WatchedProof(self.config.broadcast)
        self._broadcaster._proof = self.proof

    def send(self, **fault: Any) -> Try:
        """One update, with this order."""
        self._version += 1
        self._orders.write_text(json.dumps(fault))
        self.proof.last = WatchedProof.last
        if self._probe is None:
            self._probe = make_probe(self.actor, self._tokens, self.config)
        try:
            self.seconds.append(self._broadcaster.broadcast(self._version, self._probe).pause_seconds)
        except CanaryError:
            return self.proof.last._replace(found=True)
        return self.proof.last

    def send_true(self) -> Try:
        """An update that has to pass."""
        sent = self.send()
        if sent.found:
            raise AssertionError("right weights were taken for wrong ones")
        return sent

    def step(self, learning_rate: float) -> None:
        """One optimizer step on the task's own text, up or down."""
        first = self._num_steps * 2 % len(self._texts)
        chosen = [self._texts[(first + i) % len(self._texts)][:64] for i in range(2)]
        packed = build_packed([as_trajectory(each[:1], each[1:]) for each in chosen])
        sign = 1.0 if self._random.random() < 0.5 else -1.0
        self.actor.set_learning_rate(learning_rate)
        self.actor.accumulate(sign * self.actor.forward(packed, 1.0).log_probs.mean())
        self.actor.step()
        self._probe = None
        self._num_steps += 1

    def close(self) -> None:
        self._broadcaster.close()


def measure(
    bench: Bench, counts: Counts, tell: Callable[[Row], None], updates: Sequence[str] = ("first", "later")
) -> list[Row]:
    """All kinds of these updates, one after the other; `tell` hears of each."""
    rows: list[Row] = []

    def add(kind: str, must_fail: bool, tries: Iterator[Try]) -> None:
        rows.append(Row(kind, must_fail, list(tries)))
        tell(rows[-1])

    bench.send_true()
    if "first" in updates:
        _first_updates(bench, counts, add)
    if "later" in updates:
        _later_updates(bench, counts, add)
    return rows


def _first_updates(bench: Bench, counts: Counts, add: Add) -> None:
    add("first: nothing wrong", False, _first(bench, [{}] * max(2, counts.heads // 2)))
    add("first: one tensor left out", True, _first(bench, [{"leave_out": [n]} for n in _some(bench, counts.left_out)]))
    add("first: two layers swapped", True, _first(bench, [{"swap": [p]} for p in _pairs(bench, counts.swapped)]))
    if bench.is_tied:
        add("first: head keeps the old weights", True, _first(bench, [{"keep_head": True}] * counts.heads))


def _later_updates(bench: Bench, counts: Counts, add: Add) -> None:
    bench.forget()
    bench.send_true()
    rate = bench.config.rl.actor_learning_rate
    add(f"later: nothing wrong, after a step at {rate:g}", False, _later(bench, rate, [{}] * counts.true_updates))
    add("later: all weights old", True, _later(bench, SMALL_STEP, [{"keep_old": True}] * counts.small_steps))
    add(
        "later: two layers swapped",
        True,
        _later(bench, SMALL_STEP, [{"swap": [p]} for p in _pairs(bench, counts.swapped)]),
    )
    flips = [{"flip": (name, byte)} for name, byte in _bytes(bench, counts.flipped)]
    add("later: one bit of one byte flipped", True, _later(bench, SMALL_STEP, flips))
    add("later: nothing wrong, after a step at 1e-06", False, _later(bench, SMALL_STEP, [{}] * counts.small_steps))
    if bench.is_tied:
        kept = _later(bench, rate, [{"keep_head": True}] * counts.heads)
        add("later: head keeps the old weights", True, kept)


def _first(bench: Bench, faults: list[dict[str, Any]]) -> Iterator[Try]:
    for fault in faults:
        bench.forget()
        yield bench.send(scramble=True, **fault)


def _later(bench: Bench, rate: float, faults: list[dict[str, Any]]) -> Iterator[Try]:
    """Each after a step and, when it was found, a true update of the same weights."""
    for fault in faults:
        bench.step(rate)
        found = bench.send(**fault)
        yield found
        if fault:
            bench.send_true()


def _some(bench: Bench, count: int | None) -> list[str]:
    if count is None:
        return bench.names
    return [bench.names[i] for i in np.linspace(0, len(bench.names) - 1, count).astype(int)]


def _pairs(bench: Bench, count: int) -> list[tuple[int, int]]:
    """Neighbouring layers, which are most alike."""
    last = max(int(name.split(".layers.")[1].split(".")[0]) for name in bench.names if ".layers." in name)
    return [(i % last, i % last + 1) for i in np.linspace(0, last - 1, count).astype(int).tolist()]


def _bytes(bench: Bench, count: int) -> list[tuple[str, int]]:
    random = np.random.default_rng(1)
    names = random.choice(bench.names, count)
    return [(str(name), int(random.integers(bench.sizes[str(name)]))) for name in names]


@contextmanager
def bench_of(folder: Path, name: str, model: Path, dtype: str, **changes: Mapping[str, Any]) -> Iterator[Bench]:
    """A generator that runs `model`, and the learner's end of it."""
    orders = folder / f"{name}-orders.json"
    os.environ[ORDER_VARIABLE] = str(orders)  # the generator inherits it
    init_distributed("cpu")
    sections: dict[str, Mapping[str, Any]] = {
        "model": {"dtype": dtype},
        "generator": {
            "num_generators": 1,
            "enforce_eager": True,
            "heartbeat_seconds": 0.5,
            "engine_options": {"worker_extension_cls": "benchmarks.rig.weight_faults.WeightFaults"},
        },
        "broadcast": {"attempts": 1},  # the first failure raises
    }
    for section, values in changes.items():
        sections[section] = {**sections.get(section, {}), **values}
    with Rig(demo_settings(folder, name, model, **sections)) as rig:
        rig.start_generators()
        bench = Bench(rig, orders)
        try:
            yield bench
        finally:
            bench.close()


def run(settings: Settings) -> list[Figure]:
    """A tiny tied model in both types."""
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for dtype in ("float32",) if settings.quick else ("float32", "bfloat16"):
            model = write_model(folder / f"model-{dtype}", demo_architecture(), dtype)
            with bench_of(folder, dtype, model, dtype) as bench:
                rows = measure(bench, QUICK if settings.quick else FULL, lambda row: print(line(row), flush=True))
            figures += [_figure(dtype, rows, must_fail=True), _figure(dtype, rows, must_fail=False)]
    return figures


def _figure(dtype: str, rows: list[Row], *, must_fail: bool) -> Figure:
    chosen = [row for row in rows if row.must_fail == must_fail]
    tries = sum(len(row.tries) for row in chosen)
    value = 100 * sum(row.num_found for row in chosen) / tries
    if must_fail:
        goal, what = at_least(100), "wrong weights found"
    else:
        goal, what = at_most(0), "right weights taken for wrong"
    return Figure(f"weight proof, demo model, {dtype}: {what}", "", value, "%", goal=goal, absolute=f"{tries} tries")


def line(row: Row) -> str:
    """One row of the table."""
    moved = [each.moved for each in row.tries if not math.isnan(each.moved)]
    share = f"{min(moved):.3g}" if moved and not row.must_fail else ""
    return f"| {row.kind} | {len(row.tries)} | {row.num_found} | {row.margin} | {share} |"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cases.weight_proof", description="Faults on a real engine."
    )
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="questions and answers, one JSON object a line")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--tokens", type=int, default=256, help="broadcast.canary_tokens")
    parser.add_argument("--updates", nargs="+", choices=["first", "later"], default=["first", "later"])
    parser.add_argument("--quick", action="store_true", help="few tries of each kind")
    options = parser.parse_args()
    changes: dict[str, Mapping[str, Any]] = {
        "task": {"name": "dataset", "options": {"path": str(options.data.resolve())}},
        "generator": {"max_model_len": 512},
        "learner": {"micro_batch_tokens": 1024},
        "broadcast": {"canary_tokens": options.tokens},
    }
    with (
        tempfile.TemporaryDirectory() as name,
        bench_of(Path(name), "proof", options.model.resolve(), options.dtype, **changes) as bench,
    ):
        print("| kind | tries | found | mean difference / largest that passes | least share of answers that moved |")
        print("|---|---|---|---|---|")
        counts = QUICK if options.quick else FULL
        rows = measure(bench, counts, lambda row: print(line(row), flush=True), options.updates)
        print(f"pause, median over updates: {np.median(bench.seconds):.3f} s; {torch.get_num_threads()} thread")
    return 0 if all(row.is_right for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

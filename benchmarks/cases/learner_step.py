"""A whole learner step against model FLOPs at the speed of this machine's own matrix product.

`vcppo.learner.rl.loop.RlLoop.train` on a real batch with real DeepSpeed engines: values, old log-probs, advantages,
then actor and critic updates. Model FLOPs (`workload.ModelFlops`): 2 a weight and token for values and for old
log-probs, 6 for each update, plus causal attention and the output layer. Their time at the speed of `torch.mm` of the
same type, square, of size 2,048 (float32: 1,024), over the time the step takes, is the figure. The product runs before
every forward and backward of the updates, its time left out, for on a shared machine its speed can halve from one
second to the next; the median counts. All in CPU seconds of the one thread that computes, so that what else runs on the
machine counts less.

Beside it, what it costs to keep the step's responses with the critic's values of each token
(`vcppo.learner.rl.samples`), as a share of the step.

Models: SmolLM2-135M's shape in bfloat16, one optimizer step over its batch; and the demo's own model, float32, with the
demo's settings. Time by phase goes to docs/images/learner_step.png.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import AutoConfig, PreTrainedTokenizerFast

from benchmarks.rig.figures import Figure, Goal, at_least, at_most, seconds_text
from benchmarks.rig.harness import Settings
from benchmarks.rig.performance_page import DOCS
from benchmarks.rig.real_parts import DEMO, SMOLLM2_135M, demo_architecture, write_model
from benchmarks.rig.step_picture import PHASES, draw
from benchmarks.rig.workload import ModelFlops, log_normal_lengths, random_trajectories
from vcppo.common.config import MetricsConfig, VcppoConfig
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.batching.packing import pack
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, init_distributed
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.rl.estimates import Estimates
from vcppo.learner.rl.loop import Models, RlLoop
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.publish import Broadcaster
from vcppo.learner.rl.samples import SampleWriter

PICTURE = DOCS / "images" / "learner_step.png"
_PRODUCT_SIZE = {torch.bfloat16: 2048, torch.float32: 1024}
_QUICK_PRODUCT_SIZE = 512


@dataclass(frozen=True)
class Case:
    """A model, a batch, and how it is trained."""

    name: str
    architecture: Mapping[str, Any]
    config: VcppoConfig
    lengths: list[int]
    prompt: int
    rounds: int
    goal: Goal | None = None


class Product:
    """torch.mm of one type, now and then."""

    def __init__(self, dtype: torch.dtype, size: int) -> None:
        self._left, self._right = (torch.randn(size, size).to(dtype) for _ in range(2))
        self._out = torch.empty_like(self._left)
        self._flops = 2 * size**3
        self._samples: list[float] = []

    def run(self) -> None:
        started = time.process_time()
        torch.mm(self._left, self._right, out=self._out)
        self._samples.append(time.process_time() - started)

    @property
    def seconds(self) -> float:
        """All it has taken."""
        return sum(self._samples)

    def forget(self) -> None:
        self._samples.clear()

    @property
    def speed(self) -> float:
        """FLOP/s, the median."""
        return self._flops / statistics.median(self._samples)


class TimedEngine(TrainEngine):
    """Adds up the seconds of each kind of call."""

    def __init__(self, product: Product, *args: Any, **kwargs: Any) -> None:
        self.seconds = dict.fromkeys(("forward", "backward", "optimizer"), 0.0)
        self._product = product
        super().__init__(*args, **kwargs)

    def forward(self, *args: Any) -> Any:
        self._product.run()
        started = time.process_time()
        output = super().forward(*args)
        self.seconds["forward"] += time.process_time() - started
        return output

    def accumulate(self, loss: Tensor) -> None:
        self._product.run()
        started = time.process_time()
        super().accumulate(loss)
        self.seconds["backward"] += time.process_time() - started

    def step(self) -> float:
        started = time.process_time()
        norm = super().step()
        self.seconds["optimizer"] += time.process_time() - started
        return norm


class CpuPhases(Phases):
    """In CPU seconds, without the product's."""

    def __init__(self, product: Product) -> None:
        super().__init__()
        self._product = product
        self._cpu_started = self._now()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = self._now()
        yield
        self.seconds[name] = self._now() - started

    def finish(self) -> dict[str, float]:
        return {**self.seconds, "step": self._now() - self._cpu_started}

    def _now(self) -> float:
        return time.process_time() - self._product.seconds


@dataclass(frozen=True)
class Measured:
    """Seconds of one step by phase (`step_picture.PHASES`), the speed of the matrix product meanwhile, FLOP/s, and the
    seconds that it took to write the step's samples."""

    phases: dict[str, float]
    product_speed: float
    samples: float

    @property
    def seconds(self) -> float:
        return sum(self.phases.values())


def run(settings: Settings) -> list[Figure]:
    """A figure a model, the picture, and the phases as a note."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    init_distributed("cpu")
    figures, bars = [], {}
    for case in (_demo(settings), _smollm2(settings)):
        dtype = EngineOptions.from_config(case.config).torch_dtype
        flops, steps = _measure(case, Product(dtype, settings.size(_PRODUCT_SIZE[dtype], _QUICK_PRODUCT_SIZE)))
        efficiency = [100.0 * flops / step.product_speed / step.seconds for step in steps]
        middle = sorted(steps, key=lambda step: step.seconds)[len(steps) // 2]
        bars[case.name] = (middle.phases, flops / middle.product_speed)
        figures += [_figure(case, flops, efficiency, middle), _figure_of_samples(case, steps)]
    if not settings.quick:
        draw(bars, PICTURE)
    return figures


def _figure(case: Case, flops: float, efficiency: list[float], middle: Measured) -> Figure:
    num_tokens = sum(case.lengths)
    shares = ", ".join(f"{name} {seconds / middle.seconds:.0%}" for name, seconds in middle.phases.items())
    return Figure.of(
        f"learner step, {case.name}, {num_tokens:,} tokens",
        f"{flops / 1e9:,.0f} model GFLOP at this machine's matrix product",
        efficiency,
        unit="%",
        goal=case.goal,
        absolute=f"{seconds_text(middle.seconds)}; product {middle.product_speed / 1e9:.0f} GFLOP/s",
        note=shares,
    )


def _figure_of_samples(case: Case, steps: list[Measured]) -> Figure:
    return Figure.of(
        f"samples of a step's {len(case.lengths)} responses, {case.name}",
        "the step",
        [100.0 * step.samples / step.seconds for step in steps],
        unit="%",
        goal=at_most(2),
        absolute=seconds_text(statistics.median(step.samples for step in steps)),
    )


def _smollm2(settings: Settings) -> Case:
    architecture = dict(SMOLLM2_135M)
    if settings.quick:
        architecture |= {"num_hidden_layers": 2, "vocab_size": 2048}
    algorithm = {"num_mini_batches": 1}
    config = VcppoConfig.model_validate(
        {"model": {"path": "-", "dtype": "bfloat16"}, "algorithm": algorithm, "learner": {"micro_batch_tokens": 2048}}
    )
    lengths = log_normal_lengths(settings.size(12, 4), longest=settings.size(1220, 400))
    return Case("SmolLM2-135M shape, bf16", architecture, config, lengths, 64, rounds=1, goal=at_least(50))


def _demo(settings: Settings) -> Case:
    """The demo's settings; a batch of its lengths when it has learnt to be careful in half of its responses."""
    demo = yaml.safe_load(DEMO.read_text())
    sections = ("sampling", "algorithm", "critic", "learner", "rl")
    config = VcppoConfig.model_validate(
        {"model": {"path": "-", "dtype": "float32"}} | {name: demo[name] for name in sections}
    )
    lengths = [16 + (120 if i % 2 else 27) for i in range(settings.size(config.rl.batch_size, 16))]
    return Case("demo model, fp32", demo_architecture(), config, lengths, 16, rounds=settings.rounds(3))


def _measure(case: Case, product: Product) -> tuple[float, list[Measured]]:
    """Model FLOPs of one step, and each of its rounds. A first step, on one micro-batch, warms up: memory included."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "model", case.architecture, case.config.model.dtype)
        shape: Any = AutoConfig.from_pretrained(path)
        tokenizer = _words(shape.vocab_size)
        models = _engines(case.config, path, product)
    share = Share(0, 1, case.config.learner.micro_batch_tokens)
    loop = RlLoop(case.config, models, share, cast(Broadcaster, None), None)
    batch = Batch(random_trajectories(case.lengths, shape.vocab_size, case.prompt), 0)
    smallest = pack(case.lengths, share.micro_batch_tokens)[-1]
    first = Batch([batch.trajectories[i] for i in smallest], 0)
    _write_samples(first, loop.train(first, Phases())[0], tokenizer)
    steps = []
    for _ in range(case.rounds):
        product.forget()
        phases, samples = _one_step(loop, batch, product, tokenizer)
        steps.append(Measured(phases, product.speed, samples))
    algorithm = case.config.algorithm
    flops = ModelFlops.of(shape).step(
        case.lengths,
        batch.num_actions,
        old_log_probs=algorithm.old_log_probs == "proximal",
        epochs=algorithm.num_epochs,
    )
    return flops, steps


def _engines(config: VcppoConfig, path: Path, product: Product) -> Models:
    options = EngineOptions.from_config(config)
    policy = load_policy(
        path,
        dtype=options.torch_dtype,
        chunk_tokens=config.learner.log_prob_chunk_tokens,
        chunk_vocab=config.learner.log_prob_chunk_vocab,
    )
    critic = load_critic(path, dtype=options.torch_dtype)
    return Models(
        TimedEngine(product, policy, learning_rate=config.rl.actor_learning_rate, options=options),
        TimedEngine(product, critic, learning_rate=config.rl.critic_learning_rate, options=options),
    )


def _write_samples(batch: Batch, estimates: Estimates, tokenizer: PreTrainedTokenizerFast) -> float:
    """Seconds."""
    with tempfile.TemporaryDirectory() as folder:
        writer, started = SampleWriter(Path(folder), MetricsConfig(), tokenizer), time.process_time()
        writer.write(1, batch, estimates, has_critic=True)
        return time.process_time() - started


def _words(size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of so many words."""
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({f"w{i}": i for i in range(size)}, "w0")))


def _one_step(
    loop: RlLoop, batch: Batch, product: Product, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, float], float]:
    """Seconds by phase, and of writing its samples; "rest" is what lies between the phases: packing, advantages,
    losses, statistics."""
    actor, critic = cast(TimedEngine, loop.models.actor), cast(TimedEngine, loop.models.critic)
    for engine in (actor, critic):
        engine.seconds = dict.fromkeys(engine.seconds, 0.0)
    phases = CpuPhases(product)
    estimates, _ = loop.train(batch, phases)
    total = phases.finish()
    samples = _write_samples(batch, estimates, tokenizer)
    seconds = {
        "values": total["values"],
        "old log-probs": total["old_log_probs"],
        "actor forward": actor.seconds["forward"],
        "actor backward": actor.seconds["backward"],
        "critic forward": critic.seconds["forward"],
        "critic backward": critic.seconds["backward"],
        "optimizers": actor.seconds["optimizer"] + critic.seconds["optimizer"],
    }
    seconds["rest"] = total["step"] - sum(seconds.values())
    return {name: seconds[name] for name in PHASES}, samples

"""bfloat16 speeds, each against the device's own matrix product or memory bandwidth, measured in the same run.

FLOPs are those a model can't do without (`benchmarks.rig.workload.ModelFlops`): what is computed a second time, such as
the blocks of logits in backward, counts as time and not as work.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig

from benchmarks.gpu.findings import Findings, Place, Speed
from benchmarks.rig.real_parts import SMOLLM2_135M, write_model
from benchmarks.rig.workload import ModelFlops, log_normal_lengths, random_trajectories
from vcppo.common.config import VcppoConfig
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.engine.deepspeed_engine import EngineOptions, TrainEngine, init_distributed
from vcppo.learner.kernels.attention import Segments, packed_attention
from vcppo.learner.kernels.log_probs import chunked_log_probs
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.rl.loop import Models, RlLoop
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.publish import Broadcaster

ROUNDS = 5
# Adam reads and writes a parameter's float32 master and two moments, reads its gradient, writes the bfloat16 weight.
ADAM_BYTES = 3 * 8 + 4 + 2


class TimedEngine(TrainEngine):
    """Knows how long its optimizer took."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        self.samples: list[float] = []
        super().__init__(*args, **keywords)

    def step(self) -> float:
        """As the engine's, waited for on both sides."""
        _wait(self.device)
        began = time.perf_counter()
        norm = super().step()
        _wait(self.device)
        self.samples.append(time.perf_counter() - began)
        return norm


def run(place: Place) -> Findings:
    """Speeds of the device, of the kernels, of the optimizer and of a whole learner step."""
    product, bandwidth = _product(place), _bandwidth(place)
    found = Findings(
        speeds=[
            Speed("the device's matrix product, bfloat16", product / 1e12, "TFLOP/s"),
            Speed("the device's memory, copying", bandwidth / 1e9, "GB/s"),
            _attention(place, product),
            _log_probs(place, product),
            *_learner_step(place, product, bandwidth),
        ]
    )
    if place.quick:
        found.not_run.append("speeds at full size: the quick form's say nothing")
    return found


def _seconds(place: Place, call: Callable[[], object]) -> float:
    """The median of a few calls, after one to warm up."""
    samples = []
    for _ in range(1 + place.size(ROUNDS, 1)):
        _wait(place.device)
        began = time.perf_counter()
        call()
        _wait(place.device)
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[1:])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _product(place: Place) -> float:
    """FLOP/s of a square product."""
    size = place.size(8192, 256)
    left, right = (torch.randn(size, size, device=place.device).bfloat16() for _ in range(2))
    out = torch.empty_like(left)
    return 2 * size**3 / _seconds(place, lambda: torch.mm(left, right, out=out))


def _bandwidth(place: Place) -> float:
    """Bytes read and written a second."""
    source = torch.ones(place.size(2**29, 2**20), dtype=torch.float32, device=place.device)
    into = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(place, lambda: into.copy_(source))


def _attention(place: Place, product: float) -> Speed:
    """Forward and backward of one layer, over a pack of responses of log-normal lengths."""
    heads, key_heads, head_size = 16, 4, 128
    lengths = tuple(log_normal_lengths(place.size(24, 4), mean=place.size(2000, 40), longest=place.size(8000, 90)))
    num_tokens = sum(lengths)
    q, k, v = (
        torch.randn(1, number, num_tokens, head_size, device=place.device).bfloat16().requires_grad_()
        for number in (heads, key_heads, key_heads)
    )
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(place.device)
    segments, module = Segments(lengths, cu_seqlens), torch.nn.Identity()

    def step() -> None:
        out, _ = packed_attention(module, q, k, v, None, packed_segments=segments)
        torch.autograd.grad(out.sum(), (q, k, v))

    # Scores and their sum over values: half of each square forward (causal), two and a half times as much backward.
    flops = 3.5 * 2 * heads * head_size * sum(length**2 for length in lengths)
    seconds = _seconds(place, step)
    what = f"attention, forward and backward, {num_tokens:,} tokens, 16 heads of 128 over 4"
    return Speed(what, flops / seconds / 1e12, "TFLOP/s", 100 * flops / seconds / product, "the matrix product")


def _log_probs(place: Place, product: float) -> Speed:
    num_tokens, num_vocab, width = place.size(8192, 64), place.size(151_936, 500), place.size(2048, 32)
    hidden = torch.randn(num_tokens, width, device=place.device).bfloat16().requires_grad_()
    weight = (torch.randn(num_vocab, width, device=place.device) * width**-0.5).bfloat16().requires_grad_()
    targets = torch.randint(num_vocab, (num_tokens,), device=place.device)

    def step() -> None:
        torch.autograd.grad(chunked_log_probs(hidden, weight, targets).log_probs.sum(), (hidden, weight))

    flops, seconds = 6 * num_tokens * num_vocab * width, _seconds(place, step)
    what = f"log-probs, forward and backward, {num_tokens:,} tokens, vocabulary {num_vocab:,}"
    return Speed(what, flops / seconds / 1e12, "TFLOP/s", 100 * flops / seconds / product, "the matrix product")


def _learner_step(place: Place, product: float, bandwidth: float) -> list[Speed]:
    """`RlLoop.train` on a model of SmolLM2-135M's shape, and its actor's optimizer alone."""
    architecture = dict(SMOLLM2_135M)
    if place.quick:
        architecture |= {"num_hidden_layers": 1, "vocab_size": 512, "hidden_size": 72, "intermediate_size": 96}
    lengths = log_normal_lengths(place.size(128, 4), mean=place.size(600, 40), longest=place.size(2000, 90))
    config = _config(place)
    init_distributed("cuda" if place.is_cuda else "cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "model", architecture, "bfloat16")
        shape: Any = AutoConfig.from_pretrained(path)
        models = _engines(config, path)
    loop = RlLoop(config, models, Share(0, 1, place.size(16_384, 128)), cast(Broadcaster, None), None)
    batch = Batch(random_trajectories(lengths, shape.vocab_size, 2), 0)
    seconds = _seconds(place, lambda: loop.train(batch, Phases()))
    flops = ModelFlops.of(shape).step(lengths, batch.num_actions)
    num_parameters = sum(each.numel() for each in models.actor.module.parameters())
    optimizer = statistics.median(cast(TimedEngine, models.actor).samples[1:])
    share = 100 * num_parameters * ADAM_BYTES / optimizer / bandwidth
    name = "SmolLM2-135M's shape"
    return [
        Speed(f"learner step, {name}, {sum(lengths):,} tokens", sum(lengths) / seconds, "tokens/s",
              100 * flops / seconds / product, "the matrix product"),
        Speed(f"optimizer's step, {num_parameters / 1e6:.0f} million parameters", 1e3 * optimizer, "ms", share,
              "the memory's bandwidth"),
    ]  # fmt: skip


def _config(place: Place) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {
            "model": {"path": "-", "dtype": "bfloat16"},
            "algorithm": {"num_mini_batches": 1},
            "learner": {"device": "cuda" if place.is_cuda else "cpu"},
        }
    )


def _engines(config: VcppoConfig, path: Path) -> Models:
    options = EngineOptions.from_config(config)
    policy, critic = load_policy(path, dtype=options.torch_dtype), load_critic(path, dtype=options.torch_dtype)
    return Models(
        TimedEngine(policy, learning_rate=config.rl.actor_learning_rate, options=options),
        TrainEngine(critic, learning_rate=config.rl.critic_learning_rate, options=options),
    )

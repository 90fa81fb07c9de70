"""`chunked_log_probs`: log-probs, entropy and their gradients over several blocks, and the memory they take."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.gpu import plain
from benchmarks.gpu.findings import Findings, Number, Place, Speed, distance, most
from vcppo.common.chunk_sizes import chunk_sizes
from vcppo.learner.kernels.log_probs import chunked_log_probs

TEMPERATURE = 0.7
MOST_NATS = 1e-3
GRADIENT = {torch.bfloat16: 2.0**-6, torch.float32: 1e-4}
NAMES = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def run(place: Place) -> Findings:
    """In both types; the blocks are the device's, but in the quick form, where there would be one."""
    found, sizes = Findings(), chunk_sizes(place.device.type)
    num_tokens, num_vocab, width = place.size(1500, 70), place.size(20_011, 501), place.size(512, 32)
    chunks = {"chunk_tokens": 16, "chunk_vocab": 128} if place.quick else {}
    for dtype in (torch.bfloat16, torch.float32):
        torch.manual_seed(0)
        leaves = [
            (torch.randn(num_tokens, width) * 2).to(dtype),
            (torch.randn(num_vocab, width) * width**-0.5).to(dtype),
            torch.randn(num_vocab).to(dtype),
        ]
        targets, upstream = torch.randint(num_vocab, (num_tokens,)), torch.randn(2, num_tokens)
        ours = [x.to(place.device).requires_grad_() for x in leaves]
        if place.is_cuda:
            torch.cuda.reset_peak_memory_stats(place.device)
            before = torch.cuda.memory_allocated(place.device)
        result = chunked_log_probs(
            ours[0], ours[1], targets.to(place.device), temperature=TEMPERATURE, bias=ours[2], entropy_gradient=True,
            **chunks,
        )  # fmt: skip
        objective = (torch.stack(tuple(result)) * upstream.to(place.device)).sum()
        grads = torch.autograd.grad(objective, ours)
        if place.is_cuda:
            peak = (torch.cuda.max_memory_allocated(place.device) - before) / 2**20
            logits = 4 * num_tokens * num_vocab / 2**20
            found.speeds.append(
                Speed(f"log-probs, {NAMES[dtype]}, memory", peak, "MiB", 100 * peak / logits, "float32 logits, once")
            )
        exact = [x.double().requires_grad_() for x in leaves]
        wanted = plain.log_probs(exact[0], exact[1], exact[2], targets, TEMPERATURE)
        wanted_grads = torch.autograd.grad((torch.stack(wanted) * upstream.double()).sum(), exact)
        found.numbers += _numbers(NAMES[dtype], [*result, *grads], [*wanted, *wanted_grads], GRADIENT[dtype])
    if place.quick:
        found.not_run.append(f"blocks of the device's own size ({sizes.tokens} × {sizes.vocab}): the quick form")
    return found


def _numbers(name: str, ours: list[Tensor], wanted: list[Tensor], tolerance: float) -> list[Number]:
    what = f"log-probs, {name}"
    return [
        Number(f"{what}: log-probs", most(ours[0], wanted[0]), MOST_NATS, "nats at most"),
        Number(f"{what}: entropy", most(ours[1], wanted[1]), MOST_NATS, "nats at most"),
        *(
            Number(f"{what}: gradient of the {part}", distance(one, other), tolerance)
            for part, one, other in zip(("states", "weights", "bias"), ours[2:], wanted[2:], strict=True)
        ),
    ]

"""Which kernel attends to bfloat16 segments on this CPU, by length: ours (`kernels.segment_attention`) or torch's.

Segments of one length, as many as 2,048 tokens hold, 9 heads of 64 over 3 (SmolLM2-135M's), and what a learner step has
of each layer: two passes forward only (values, old log-probs) and two with their backward (actor, critic).
`vcppo.learner.kernels.attention` sends segments from `FUSED_FROM` tokens through torch's kernel where there is AMX;
this is what it rests on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.rig.figures import Figure, seconds_text
from benchmarks.rig.harness import Settings, measure, ratios
from vcppo.learner.kernels.attention import FUSED_FROM, by_runs, has_amx
from vcppo.learner.kernels.segment_attention import plan, segment_attention

LENGTHS = (128, 256, 384, 1024, 2048)
NUM_TOKENS = 2048
NUM_HEADS, NUM_KEY_HEADS, HEAD_SIZE = 9, 3, 64
MAX_DIFFERENCE = 2.0**-7  # of the outputs, by norm

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


def run(settings: Settings) -> list[Figure]:
    """A figure a length."""
    return [_figure(length, settings) for length in LENGTHS[: settings.size(len(LENGTHS), 1)]]


def _figure(length: int, settings: Settings) -> Figure:
    count, scale = NUM_TOKENS // length, HEAD_SIZE**-0.5
    groups = plan([length] * count)
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(count * length, heads, HEAD_SIZE).bfloat16().requires_grad_()
        for heads in (NUM_HEADS, NUM_KEY_HEADS, NUM_KEY_HEADS)
    )
    upstream = torch.randn(count * length, NUM_HEADS, HEAD_SIZE).bfloat16()
    kernels: dict[str, Kernel] = {
        "ours": lambda q, k, v: segment_attention(q, k, v, groups, scale),
        "torch": lambda q, k, v: by_runs(q, k, v, [(length, count)], scale, None),
    }
    _check(*(kernel(q, k, v).detach() for kernel in kernels.values()))

    def step(kernel: Kernel) -> None:
        for _ in range(2):
            with torch.no_grad():
                kernel(q, k, v)
            torch.autograd.grad(kernel(q, k, v), (q, k, v), upstream)

    timings = measure(
        {name: lambda kernel=kernel: step(kernel) for name, kernel in kernels.items()},  # type: ignore[misc]
        settings.rounds(2),
        single_calls=True,
    )
    chosen = "torch's" if has_amx() and length >= FUSED_FROM else "ours"
    return Figure.of(
        f"attention, bf16, a layer of a learner step, segments of {length:,} tokens",
        "torch's kernel",
        ratios(timings["ours"], timings["torch"], cpu=True),
        absolute=f"{seconds_text(timings['ours'].median_cpu)} against {seconds_text(timings['torch'].median_cpu)}",
        note=f"taken here: {chosen}",
    )


def _check(ours: Tensor, theirs: Tensor) -> None:
    difference = float((ours.float() - theirs.float()).norm() / theirs.float().norm())
    if difference > MAX_DIFFERENCE:
        raise ArithmeticError(f"the kernels differ by {difference:.1e} of the output, at most {MAX_DIFFERENCE:.0e}")

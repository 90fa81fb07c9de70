"""`packed_attention` forward and backward, in every form that the learner asks for."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu import plain
from benchmarks.gpu.findings import Findings, Place, distances
from vcppo.learner.kernels.attention import Segments, choose_kernel, packed_attention

LENGTHS = (700, 384, 384, 129, 1, 65)
QUICK_LENGTHS = (37, 12, 12, 1, 5)
# bfloat16 has 8 bits: outputs and gradients are rounded to it, and probabilities before the product with the values.
TOLERANCE = {torch.bfloat16: 2.0**-6, torch.float32: 1e-4}


class Form(NamedTuple):
    """A case: type, heads of queries and keys, size of a head, window."""

    name: str
    dtype: torch.dtype
    heads: int = 8
    key_heads: int = 2
    head_size: int = 64
    window: int | None = None


FORMS = (
    Form("bfloat16", torch.bfloat16),
    Form("bfloat16, as many key heads", torch.bfloat16, key_heads=8),
    Form("bfloat16, heads of 128", torch.bfloat16, head_size=128),
    Form("bfloat16, heads of 36", torch.bfloat16, head_size=36),
    Form("bfloat16, a window of 9 tokens", torch.bfloat16, window=9),
    Form("float32", torch.float32),
    Form("float32, a window of 9 tokens", torch.float32, window=9),
)


def run(place: Place) -> Findings:
    """Output and the gradients of queries, keys and values."""
    found, lengths = Findings(), QUICK_LENGTHS if place.quick else LENGTHS
    for form in FORMS:
        kernel = choose_kernel(place.device.type, form.dtype, form.head_size, form.head_size)
        ours, theirs = _both(form, lengths, place.device)
        what = f"attention, {form.name} ({kernel})"
        found.numbers += distances(what, ("output", "dq", "dk", "dv"), ours, theirs, TOLERANCE[form.dtype])
    return found


def _both(form: Form, lengths: tuple[int, ...], device: torch.device) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients ``[N, H, D]``: the product's, and float64's of the same inputs."""
    torch.manual_seed(0)
    num_tokens, scale = sum(lengths), form.head_size**-0.5
    sizes = (form.heads, form.key_heads, form.key_heads)
    inputs = [torch.randn(num_tokens, heads, form.head_size).to(form.dtype) for heads in sizes]
    upstream = torch.randn(num_tokens, form.heads, form.head_size).to(form.dtype)
    q, k, v = (x.to(device).transpose(0, 1)[None].requires_grad_() for x in inputs)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).int().to(device)
    segments = Segments(lengths, cu_seqlens)
    out, _ = packed_attention(
        torch.nn.Identity(), q, k, v, None, packed_segments=segments, scaling=scale, sliding_window=form.window
    )
    grads = torch.autograd.grad(out, (q, k, v), upstream.to(device)[None])
    exact = [x.double().requires_grad_() for x in inputs]
    expected = plain.attention(exact[0], exact[1], exact[2], lengths, scale, form.window)
    wanted = torch.autograd.grad(expected, exact, upstream.double())
    return [out[0], *(grad[0].transpose(0, 1) for grad in grads)], [expected, *wanted]

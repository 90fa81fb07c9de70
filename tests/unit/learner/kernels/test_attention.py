"""Packed attention is each sequence's own causal attention, forwards and backwards."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from vcppo.common.errors import VcppoError
from vcppo.learner.kernels import attention
from vcppo.learner.kernels import segment_attention as module
from vcppo.learner.kernels.attention import Segments, choose_kernel, packed_attention
from vcppo.learner.kernels.segment_attention import Group, plan, segment_attention

LENGTHS = (7, 3, 3, 3, 1, 5)
CU = torch.tensor([0, 7, 10, 13, 16, 17, 22], dtype=torch.int32)


def literal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int | None) -> torch.Tensor:
    """Token by token, head by head: softmax over the tokens of the same sequence seen so far."""
    out, start = torch.zeros_like(q), 0
    for length in LENGTHS:
        for head in range(q.shape[1]):
            kv = head // (q.shape[1] // k.shape[1])
            for i in range(length):
                first = 0 if window is None else max(0, i - window + 1)
                seen = slice(start + first, start + i + 1)
                weights = torch.softmax(k[0, kv, seen] @ q[0, head, start + i] * 0.5, dim=0)
                out[0, head, start + i] = weights @ v[0, kv, seen]
        start += length
    return out.transpose(1, 2)


@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (2, None), (1, None), (2, 4)])
def test_it_is_literal_attention_within_each_sequence(kv_heads: int, window: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 22, 8, requires_grad=True) for heads in (4, kv_heads, kv_heads))
    segments = Segments(LENGTHS, CU)
    out, weights = packed_attention(
        torch.nn.Identity(), q, k, v, None, scaling=0.5, sliding_window=window, packed_segments=segments
    )
    expected = literal(q, k, v, window)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: list[int], window: int | None):
    """torch's own attention in float64, segment by segment. ``[N, H, D]``."""
    outputs = []
    for qs, ks, vs in zip(*(x.double().split(lengths) for x in (q, k, v)), strict=True):
        token = torch.arange(len(qs))
        seen = token[:, None] >= token
        if window is not None:
            seen &= token[:, None] - token < window
        qs, ks, vs = (x.transpose(0, 1)[None] for x in (qs, ks, vs))
        out = functional.scaled_dot_product_attention(qs, ks, vs, attn_mask=seen, enable_gqa=True)
        outputs.append(out[0].transpose(0, 1))
    return torch.cat(outputs)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("window", [None, 20])
@pytest.mark.parametrize("lengths", [[300, 150, 140, 129, 128, 40, 39, 12, 5, 1], [64] * 5, [1]])
@pytest.mark.parametrize("tile", [2**19, 2**12])  # one tile a group, and many over heads, segments and rows
def test_tiles_and_padding_change_nothing(lengths, window, dtype, tolerance, tile, monkeypatch) -> None:
    monkeypatch.setattr(module, "MAX_TILE", tile)
    torch.manual_seed(0)
    q, k, v = (torch.randn(sum(lengths), heads, 16).to(dtype).requires_grad_() for heads in (6, 2, 2))
    got = segment_attention(q, k, v, plan(lengths), 0.25, window)
    want = reference(q, k, v, lengths, window)
    upstream = torch.randn_like(got)
    grads = torch.autograd.grad(got, (q, k, v), upstream)
    expected = torch.autograd.grad(want, (q, k, v), upstream.double())
    for mine, theirs in zip((got, *grads), (want, *expected), strict=True):
        assert mine.dtype == dtype
        assert (mine - theirs).norm() <= tolerance * theirs.norm() + 1e-6


@pytest.mark.parametrize("lengths", [[40, 40, 33, 12, 5], [40, 33], [12, 5]])  # two kernels, only torch's, only ours
@pytest.mark.parametrize("window", [None, 20])
def test_long_segments_through_torchs_kernel_change_nothing(lengths, window, monkeypatch) -> None:
    monkeypatch.setattr(attention, "has_amx", lambda: True)
    monkeypatch.setattr(attention, "FUSED_FROM", 32)
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, sum(lengths), 16).bfloat16().requires_grad_() for heads in (6, 2, 2))
    segments = Segments(tuple(lengths), torch.tensor([0, *np.cumsum(lengths)], dtype=torch.int32))
    assert segments.num_fused == sum(length >= 32 for length in lengths)
    got, _ = packed_attention(
        torch.nn.Identity(), q, k, v, None, scaling=0.25, sliding_window=window, packed_segments=segments
    )
    want = reference(*(x[0].transpose(0, 1) for x in (q, k, v)), lengths, window)[None]
    upstream = torch.randn_like(got)
    grads = torch.autograd.grad(got, (q, k, v), upstream)
    expected = torch.autograd.grad(want, (q, k, v), upstream.double())
    for mine, theirs in zip((got, *grads), (want, *expected), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - theirs).norm() <= 2**-7 * theirs.norm()


def test_a_plan_holds_every_token_once_and_pads_little() -> None:
    lengths = sorted((int(x) for x in np.random.default_rng(0).lognormal(5, 0.8, 40)), reverse=True)
    groups: tuple[Group, ...] = plan(lengths)
    tokens = torch.arange(sum(lengths))[:, None, None]
    by_head = [group.to_heads(tokens, 1) for group in groups]
    assert sum(area.shape[0] * area.shape[1] ** 2 for area in by_head) <= 1.3 * sum(length**2 for length in lengths)
    back = torch.zeros_like(tokens)
    for group, x in zip(groups, by_head, strict=True):
        group.from_heads(x, back, 1)
    assert torch.equal(back, tokens)
    assert 1 < len(groups) < len(lengths) and sum(group.num_segments for group in groups) == len(lengths)


@pytest.mark.parametrize("refused", [{"softcap": 30.0}, {"dropout": 0.1}, {"attention_mask": torch.ones(1)}])
def test_what_it_would_get_wrong_is_refused(refused: dict[str, object]) -> None:
    q = torch.zeros(1, 1, 1, 4)
    arguments = {"attention_mask": None, "packed_segments": Segments((1,), CU[:2])}
    with pytest.raises(VcppoError, match="Identity asks for"):
        packed_attention(torch.nn.Identity(), q, q, q, **(arguments | refused))


@pytest.mark.parametrize(
    ("device", "dtype", "head_size", "value_size", "kernel"),
    [
        ("cpu", torch.float32, 64, 64, "runs"),
        ("cpu", torch.bfloat16, 64, 64, "segments"),
        ("cuda", torch.bfloat16, 64, 64, "varlen"),
        ("cuda", torch.bfloat16, 256, 256, "varlen"),
        # What torch's flash attention refuses: "only support fp16 and bf16", "multiple of 8", "at most 256".
        ("cuda", torch.float32, 64, 64, "runs"),
        ("cuda", torch.bfloat16, 36, 36, "runs"),
        ("cuda", torch.bfloat16, 320, 320, "runs"),
        ("cuda", torch.bfloat16, 192, 128, "runs"),
    ],
)
def test_the_kernel_is_one_that_takes_these_tensors(
    device: str, dtype: torch.dtype, head_size: int, value_size: int, kernel: str
) -> None:
    assert choose_kernel(device, dtype, head_size, value_size) == kernel

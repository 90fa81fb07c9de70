"""Packed attention is each sequence's own causal attention, forwards and backwards."""

from __future__ import annotations

import pytest
import torch

from common.errors import VcppoError
from learner.attention import packed_attention

LENGTHS = (7, 3, 3, 3, 1, 5)
SEGMENTS = ((7, 1), (3, 3), (1, 1), (5, 1))
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
    arguments = {"packed_cu_seqlens": CU, "packed_segments": SEGMENTS, "packed_longest": 7}
    out, weights = packed_attention(torch.nn.Identity(), q, k, v, None, scaling=0.5, sliding_window=window, **arguments)
    expected = literal(q, k, v, window)
    assert weights is None
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    upstream = torch.randn_like(out)
    for got, want in zip(
        torch.autograd.grad(out, (q, k, v), upstream), torch.autograd.grad(expected, (q, k, v), upstream), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("refused", [{"softcap": 30.0}, {"dropout": 0.1}, {"attention_mask": torch.ones(1)}])
def test_what_it_would_get_wrong_is_refused(refused: dict[str, object]) -> None:
    q = torch.zeros(1, 1, 1, 4)
    arguments = {"attention_mask": None, "packed_cu_seqlens": CU, "packed_segments": ((1, 1),), "packed_longest": 1}
    with pytest.raises(VcppoError, match="Identity asks for"):
        packed_attention(torch.nn.Identity(), q, q, q, **(arguments | refused))

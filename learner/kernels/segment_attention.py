"""Causal attention within segments on a CPU, forwards and backwards, from batched matrix products and softmax.

In bfloat16 torch's own CPU kernel reaches less than a tenth of the speed of the machine's matrix product on segments of
a few hundred tokens, and it must be called once per length. Here segments of similar lengths go through one batch,
padded at their end (`plan`): causality hides the padding from every real token, so it needs no mask. Rows are taken in
tiles that see only the keys up to their own last row; scores and probabilities of one tile are all that exists at a
time, and backward computes them again.

Scores, softmax and its gradient are float32, whatever the type of the inputs; probabilities are rounded to that type
for the product with the values, as flash attention does.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vcppo.learner.kernels.bf16_matmul import bfloat16_products

MAX_TILE = 2**19  # scores in a tile, over heads and sequences: 2 MiB of float32, which stay in the cache
MAX_TILE_ROWS = 128
# A group may be padded to twice its area while it is small: there a call costs more than what it computes.
_SMALL_AREA = 2**14
_MAX_PADDING = 1.2


class Group(NamedTuple):
    """Segments that go through one batch: neighbours in the pack.

    Attributes:
        num_segments: S.
        start, stop: their tokens are ``start:stop`` of the pack.
        padding: None when all have one length.
    """

    num_segments: int
    start: int
    stop: int
    padding: _Padding | None

    def to_heads(self, packed: Tensor, num_heads: int, *, zero_padding: bool = False) -> Tensor:
        """``[N, G * num_heads, D]`` to ``[S * num_heads, T * G, D]``, contiguous, token by token."""
        if self.padding is None:
            rows = packed[self.start : self.stop]
        else:
            rows = packed.index_select(0, self.padding.rows)
            if zero_padding:
                rows[self.padding.padded] = 0
        by_segment = rows.view(self.num_segments, -1, num_heads, packed.shape[1] // num_heads, packed.shape[2])
        return by_segment.transpose(1, 2).contiguous().view(self.num_segments * num_heads, -1, packed.shape[2])

    def from_heads(self, by_head: Tensor, packed: Tensor, num_heads: int) -> None:
        """``[S * num_heads, T * G, D]`` back into the pack ``[N, G * num_heads, D]``; padding is left out."""
        shape = (self.num_segments, num_heads, -1, packed.shape[1] // num_heads, packed.shape[2])
        by_segment = by_head.view(shape).transpose(1, 2)
        if self.padding is None:
            rows = packed[self.start : self.stop]
            rows.view(by_segment.shape).copy_(by_segment)
        else:
            packed[self.start : self.stop] = by_segment.reshape(-1, *packed.shape[1:])[self.padding.real]


class _Padding(NamedTuple):
    """How S segments become S * T rows, T the longest's length.

    Attributes:
        rows: ``[S * T]`` int64: where in the pack each stands; behind its end a segment repeats its last token.
        padded: ``[P]`` int64, which rows do so.
        real: ``[S * T - P]`` int64, the others.
    """

    rows: Tensor
    padded: Tensor
    real: Tensor


def plan(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Groups of neighbouring segments; padding is least where `lengths` are sorted, longest first."""
    groups, first, start = [], 0, 0
    while first < len(lengths):
        last = _end_of_group(lengths, first)
        groups.append(_group(start, lengths[first:last]))
        first, start = last, groups[-1].stop
    return tuple(groups)


def segment_attention(
    q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], scale: float, window: int | None = None
) -> Tensor:
    """``[N, Hq, Dv]`` from q ``[N, Hq, D]``, k ``[N, Hkv, D]`` and v ``[N, Hkv, Dv]``, Hkv dividing Hq.

    Args:
        groups: `plan` of the segments' lengths, which sum to N.
        scale: of the scores.
        window: a token sees this many up to and including itself; None: all of its segment.
    """
    out: Tensor = _SegmentAttention.apply(q, k, v, groups, scale, window)
    return out


def _end_of_group(lengths: Sequence[int], first: int) -> int:
    """As many as fit a tile without padding costing more than calls saved."""
    longest, area, end = 0, 0, first
    while end < len(lengths):
        longest, area = max(longest, lengths[end]), area + lengths[end] ** 2
        padded = (end + 1 - first) * longest**2
        if end > first and padded > (_MAX_PADDING if padded > _SMALL_AREA else 2.0) * area:
            break
        end += 1
    return end


def _group(start: int, lengths: Sequence[int]) -> Group:
    longest, shortest, stop = max(lengths), min(lengths), start + sum(lengths)
    if longest == shortest:
        return Group(len(lengths), start, stop, None)
    position, sizes = torch.arange(longest), torch.tensor(lengths)[:, None]
    starts = start + sizes.cumsum(0) - sizes
    is_real = (position < sizes).flatten()
    rows = (starts + torch.minimum(position, sizes - 1)).flatten()
    return Group(len(lengths), start, stop, _Padding(rows, (~is_real).nonzero()[:, 0], is_real.nonzero()[:, 0]))


class _SegmentAttention(torch.autograd.Function):
    """Float32 products in here are of values that were of the inputs' type, so all of them may be bfloat16's."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], scale: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.groups, ctx.scale, ctx.window = groups, scale, window
        out, num_heads = q.new_empty(*q.shape[:2], v.shape[2]), k.shape[1]
        scores = _Scores(q.shape[1] // num_heads, scale, window)
        with bfloat16_products(q.dtype):
            for group in groups:
                queries, keys, values = (group.to_heads(x, num_heads) for x in (q, k, v))
                result = queries.new_empty(*queries.shape[:2], v.shape[2])
                wide_queries, wide_keys = queries.float(), keys.float()
                for tile in scores.tiles(*keys.shape[:2]):
                    probs = scores.probs(wide_queries, wide_keys, tile)
                    result[tile.rows] = probs.to(q.dtype) @ values[tile.keys]
                group.from_heads(result, out, num_heads)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors
        q, k, _ = packed
        grads, num_heads = [x.new_empty(x.shape) for x in packed], k.shape[1]
        scores = _Scores(q.shape[1] // num_heads, ctx.scale, ctx.window)
        with bfloat16_products(q.dtype):
            for group in ctx.groups:
                queries, keys, values = (group.to_heads(x, num_heads) for x in packed)
                # A row whose output has no gradient gives none to what it attended to.
                grad_out = group.to_heads(grad_outputs[0], num_heads, zero_padding=True)
                parts = _gradients(scores, queries, keys, values, grad_out)
                for part, grad in zip(parts, grads, strict=True):
                    group.from_heads(part, grad, num_heads)
        return (*grads, None, None, None)


def _gradients(
    scores: _Scores, queries: Tensor, keys: Tensor, values: Tensor, grad_out: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one group, shaped like queries, keys and values (`Group.to_heads`)."""
    dtype, grad_queries = queries.dtype, torch.empty_like(queries)
    grad_keys, grad_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
    wide_queries, wide_keys, wide_values, wide_grad_out = (x.float() for x in (queries, keys, values, grad_out))
    for tile in scores.tiles(*keys.shape[:2]):
        probs = scores.probs(wide_queries, wide_keys, tile)
        grad_probs = wide_grad_out[tile.rows] @ wide_values[tile.keys].transpose(1, 2)
        grad_values[tile.keys].add_(probs.to(dtype).transpose(1, 2) @ grad_out[tile.rows])
        grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, torch.float32).to(dtype)
        grad_queries[tile.rows] = grad_scores @ keys[tile.keys]
        grad_keys[tile.keys].add_(grad_scores.transpose(1, 2) @ queries[tile.rows])
    return grad_queries.mul_(scores.scale), grad_keys.mul_(scores.scale).to(dtype), grad_values.to(dtype)


class _Tile(NamedTuple):
    """Scores that are computed at once: rows of queries ``[B, T * G, D]`` against keys ``[B, T, D]``.

    The keys end with the last row's own token.
    """

    rows: tuple[slice, slice]
    keys: tuple[slice, slice]


class _Scores:
    """How queries and keys become probabilities; G query heads share a key head."""

    def __init__(self, num_grouped: int, scale: float, window: int | None) -> None:
        self.scale = scale
        self._num_grouped = num_grouped
        self._window = window
        self._later = torch.full((MAX_TILE_ROWS, MAX_TILE_ROWS), -torch.inf).triu_(1).repeat_interleave(num_grouped, 0)

    def tiles(self, num_batch: int, length: int) -> Iterator[_Tile]:
        """Of all scores of a group: B key heads of T tokens."""
        grouped = self._num_grouped
        rows = math.ceil(length / math.ceil(length / MAX_TILE_ROWS))
        for start in range(0, length, rows):
            stop = min(length, start + rows)
            first = 0 if self._window is None else max(0, start - self._window + 1)
            step = max(1, MAX_TILE // (grouped * (stop - start) * (stop - first)))
            for b in range(0, num_batch, step):
                batch = slice(b, b + step)
                yield _Tile((batch, slice(start * grouped, stop * grouped)), (batch, slice(first, stop)))

    def probs(self, queries: Tensor, keys: Tensor, tile: _Tile) -> Tensor:
        """``[B of the tile, its rows, its keys]`` float32."""
        rows, seen = queries[tile.rows], keys[tile.keys]
        scores = rows.new_empty(*rows.shape[:2], seen.shape[1])
        scores.baddbmm_(rows, seen.transpose(1, 2), beta=0, alpha=self.scale)
        self._hide(scores, tile)
        return torch.softmax(scores, -1, out=scores)

    def _hide(self, scores: Tensor, tile: _Tile) -> None:
        """Keys after a row's own, and before its window."""
        num_rows, num_tokens = scores.shape[1], scores.shape[1] // self._num_grouped
        scores[..., -num_tokens:].add_(self._later[:num_rows, :num_tokens])
        first, stop = tile.keys[1].start, tile.keys[1].stop
        if self._window is not None and stop - first > self._window:
            token = torch.arange(stop - num_tokens, stop).repeat_interleave(self._num_grouped)[:, None]
            scores.masked_fill_(token - torch.arange(first, stop) >= self._window, -torch.inf)

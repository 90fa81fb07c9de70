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

from learner.products import bfloat16_products

MAX_TILE = 2**19  # scores in a tile, over heads and sequences: 2 MiB of float32, which stay in the cache
MAX_TILE_ROWS = 128
# A group may be padded to twice its area while it is small: there a call costs more than what it computes.
_SMALL_AREA = 2**14
_MAX_PADDING = 1.2


class Group(NamedTuple):
    """Segments that go through one batch.

    Attributes:
        num_segments: S.
        rows: ``[S * T]`` int64: where in the pack each token of each segment stands, T the longest's length; behind
            its end a segment repeats its last token.
        padding: ``[P]`` int64, which of the rows do so; None: none.
        real: ``[S * T - P]`` int64, the others; None: all.
    """

    num_segments: int
    rows: Tensor
    padding: Tensor | None
    real: Tensor | None

    def to_heads(self, packed: Tensor, num_heads: int, *, zero_padding: bool = False) -> Tensor:
        """``[N, H, D]`` to ``[S * num_heads, H / num_heads, T, D]``, contiguous."""
        rows = packed.index_select(0, self.rows)
        if zero_padding and self.padding is not None:
            rows[self.padding] = 0
        split = rows.view(self.num_segments, -1, num_heads, packed.shape[1] // num_heads, packed.shape[2])
        return split.permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous()

    def from_heads(self, by_head: Tensor, packed: Tensor) -> None:
        """Back into a pack's rows; padding is left out."""
        rows = by_head.unflatten(0, (self.num_segments, -1)).permute(0, 3, 1, 2, 4).reshape(-1, *packed.shape[1:])
        if self.real is None:
            packed.index_copy_(0, self.rows, rows)
        else:
            packed.index_copy_(0, self.rows[self.real], rows[self.real])


def plan(lengths: Sequence[int]) -> tuple[Group, ...]:
    """Groups of neighbouring segments; padding is least where `lengths` are sorted, longest first."""
    starts = torch.tensor([0, *lengths]).cumsum(0)
    groups, first = [], 0
    while first < len(lengths):
        last = _end_of_group(lengths, first)
        groups.append(_group(starts[first:last], lengths[first:last]))
        first = last
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


def _group(starts: Tensor, lengths: Sequence[int]) -> Group:
    position = torch.arange(max(lengths))
    sizes = torch.tensor(lengths)[:, None]
    rows = (starts[:, None] + torch.minimum(position, sizes - 1)).flatten()
    is_real = (position < sizes).flatten()
    if bool(is_real.all()):
        return Group(len(lengths), rows, None, None)
    return Group(len(lengths), rows, (~is_real).nonzero()[:, 0], is_real.nonzero()[:, 0])


class _SegmentAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, groups: tuple[Group, ...], scale: float, window: int | None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.groups, ctx.scale, ctx.window = groups, scale, window
        out, num_heads = q.new_empty(*q.shape[:2], v.shape[2]), k.shape[1]
        for group in groups:
            queries, keys, values = (group.to_heads(x, num_heads) for x in (q, k, v))
            wide_keys, result = keys[:, 0].float(), queries.new_empty(*queries.shape[:3], v.shape[2])
            for tile in _tiles(queries.shape, window):
                probs = _probs(queries, wide_keys, tile, scale)
                result[tile.at] = (probs.to(q.dtype) @ values[tile.batch, 0, tile.keys]).view_as(result[tile.at])
            group.from_heads(result, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        packed = ctx.saved_tensors
        grads, num_heads = [x.new_empty(x.shape) for x in packed], packed[1].shape[1]
        for group in ctx.groups:
            queries, keys, values = (group.to_heads(x, num_heads) for x in packed)
            # A row whose output has no gradient gives none to what it attended to.
            grad_out = group.to_heads(grad_outputs[0], num_heads, zero_padding=True)
            parts = _gradients(queries, keys, values, grad_out, ctx.scale, ctx.window)
            for part, grad in zip(parts, grads, strict=True):
                group.from_heads(part, grad)
        return (*grads, None, None, None)


def _gradients(
    queries: Tensor, keys: Tensor, values: Tensor, grad_out: Tensor, scale: float, window: int | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Of one group, shaped like queries, keys and values (`Group.to_heads`)."""
    dtype = queries.dtype
    grad_queries = torch.empty_like(queries)
    grad_keys, grad_values = (torch.zeros_like(x, dtype=torch.float32) for x in (keys, values))
    wide_keys, wide_values = keys[:, 0].float(), values[:, 0].float()
    for tile in _tiles(queries.shape, window):
        probs = _probs(queries, wide_keys, tile, scale)
        grad_rows = grad_out[tile.at].flatten(1, 2)
        with bfloat16_products(dtype):
            grad_probs = grad_rows.float() @ wide_values[tile.batch, tile.keys].transpose(1, 2)
        grad_values[tile.batch, 0, tile.keys] += probs.to(dtype).transpose(1, 2) @ grad_rows
        grad_scores = torch._softmax_backward_data(grad_probs, probs, -1, torch.float32).to(dtype)
        product = grad_scores @ keys[tile.batch, 0, tile.keys]
        grad_queries[tile.at] = product.mul_(scale).view_as(grad_queries[tile.at])
        grad_keys[tile.batch, 0, tile.keys] += grad_scores.transpose(1, 2) @ queries[tile.at].flatten(1, 2)
    return grad_queries, grad_keys.mul_(scale).to(dtype), grad_values.to(dtype)


class _Tile(NamedTuple):
    """Scores ``[batch, G * tokens, keys]`` that are computed at once; the keys end with the tokens."""

    batch: slice
    tokens: slice
    keys: slice
    window: int | None

    @property
    def at(self) -> tuple[slice, slice, slice]:
        """Its part of ``[B, G, T, D]``."""
        return self.batch, slice(None), self.tokens


def _tiles(shape: Sequence[int], window: int | None) -> Iterator[_Tile]:
    """Of queries ``[B, G, T, D]``."""
    num_batch, num_grouped, length, _ = shape
    rows = math.ceil(length / math.ceil(length / MAX_TILE_ROWS))
    for start in range(0, length, rows):
        stop = min(length, start + rows)
        first = 0 if window is None else max(0, start - window + 1)
        step = max(1, MAX_TILE // (num_grouped * (stop - start) * (stop - first)))
        for b in range(0, num_batch, step):
            yield _Tile(slice(b, min(b + step, num_batch)), slice(start, stop), slice(first, stop), window)


def _probs(queries: Tensor, wide_keys: Tensor, tile: _Tile, scale: float) -> Tensor:
    """``[batch, G * tokens, keys]`` float32 of one tile."""
    part, keys = queries[tile.at], wide_keys[tile.batch, tile.keys]
    rows = part.flatten(1, 2).float()
    scores = rows.new_empty(len(rows), rows.shape[1], keys.shape[1])
    with bfloat16_products(queries.dtype):
        scores.baddbmm_(rows, keys.transpose(1, 2), beta=0, alpha=scale)
    _hide(scores.unflatten(1, part.shape[1:3]), tile)
    return torch.softmax(scores, -1, out=scores)


def _hide(scores: Tensor, tile: _Tile) -> None:
    """Keys after a row's own, and before its window. ``scores [batch, G, tokens, keys]``."""
    num_rows = scores.shape[2]
    scores[..., -num_rows:] += _LATER[:num_rows, :num_rows]
    if tile.window is not None:
        token = torch.arange(tile.tokens.start, tile.tokens.stop)[:, None]
        key = torch.arange(tile.keys.start, tile.keys.stop)
        scores.masked_fill_(token - key >= tile.window, -torch.inf)


_LATER = torch.full((MAX_TILE_ROWS, MAX_TILE_ROWS), -torch.inf).triu_(1)

"""Attention over packed sequences: each segment attends to itself, causally, and to nothing else.

Registered with transformers under `PACKED_ATTENTION`; a model loaded with that ``attn_implementation`` calls
`packed_attention` in every layer, with the keyword arguments of `attention_arguments` passed through the model's
forward. No mask is ever built: transformers makes none for an implementation without a mask function.

On a CPU the cost is the sum of squared segment lengths, not the square of the pack. Float32 goes through torch's own
kernel, neighbouring segments of one length in one call; bfloat16 through `vcppo.learner.kernels.segment_attention`, up
to three times as fast, but for long segments on a CPU with AMX, which torch's kernel uses better. On CUDA
`torch.nn.attention.varlen.varlen_attn` does the same in one flash kernel, which knows 16-bit types only: float32 goes
through torch's own kernel there too (written on torch's documented interface; NOT RUN here, there being no GPU).
`choose_kernel` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby, takewhile
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vcppo.common.errors import VcppoError
from vcppo.learner.batching.packing import PackedBatch
from vcppo.learner.batching.sequence_shard import ShardedBatch
from vcppo.learner.kernels.segment_attention import Group, plan, segment_attention
from vcppo.learner.kernels.sequence_parallel import trade_heads_for_tokens, trade_tokens_for_heads

PACKED_ATTENTION = "vcppo_packed"
FUSED_FROM = 384  # tokens of a segment, from where torch's bfloat16 kernel is the faster one with AMX, both ways
MOST_FLASH_HEAD = 256
_REFUSED = ("softcap", "s_aux", "position_bias")

Kernel = Literal["varlen", "runs", "segments"]


@dataclass(frozen=True)
class Segments:
    """Where sequences begin and end in a pack: what every layer's attention needs to know, worked out once.

    Attributes:
        lengths: ``S`` Python ints, which sum to N.
        cu_seqlens: ``[S+1]`` int32, on the model's device.
        num_shards: ranks that share the pack, each with as many of its tokens; 1: this rank has all.
    """

    lengths: tuple[int, ...]
    cu_seqlens: Tensor
    num_shards: int = 1

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest sequence."""
        return max(self.lengths)

    @cached_property
    def runs(self) -> list[tuple[int, int]]:
        """(length, count) of neighbours of one length."""
        return [(length, sum(1 for _ in run)) for length, run in groupby(self.lengths)]

    @cached_property
    def fused_runs(self) -> list[tuple[int, int]]:
        """The first of `runs`, which torch's own kernel takes in bfloat16; a pack has its longest first."""
        return list(takewhile(lambda run: run[0] >= FUSED_FROM, self.runs)) if has_amx() else []

    @property
    def num_fused(self) -> int:
        """How many segments `fused_runs` hold."""
        return sum(count for _, count in self.fused_runs)

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Of the segments after `num_fused`."""
        return plan(self.lengths[self.num_fused :])


@cache
def has_amx() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in tiles."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def attention_arguments(batch: PackedBatch) -> dict[str, Any]:
    """Keyword arguments for the model's forward that carry the sequence boundaries to every layer."""
    num_shards = batch.num_shards if isinstance(batch, ShardedBatch) else 1
    return {"packed_segments": Segments(batch.lengths, batch.cu_seqlens, num_shards)}


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_segments: Segments,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment.

    Args:
        query: ``[1, Hq, N, D]``; key, value: ``[1, Hkv, N, D]`` with Hkv dividing Hq.
        attention_mask: must be None; boundaries come from `packed_segments`.

    Returns:
        ``[1, N, Hq, D]`` and no attention weights.
    """
    used = [name for name in _REFUSED if kwargs.get(name) is not None]
    if attention_mask is not None or dropout or used:
        raise VcppoError(
            f"packed attention can't do {', '.join(used) or ('dropout' if dropout else 'an attention mask')}, "
            f"which {type(module).__name__} asks for"
        )
    window = sliding_window if sliding_window is not None and sliding_window < packed_segments.longest else None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, H, D]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if packed_segments.num_shards > 1:
        q, k, v = trade_tokens_for_heads(q, k, v)
    match choose_kernel(query.device.type, query.dtype, query.shape[-1], value.shape[-1]):
        case "varlen":
            out = _varlen(q, k, v, packed_segments, scale, window)
        case "runs":
            out = by_runs(q, k, v, packed_segments.runs, scale, window)
        case "segments":
            out = _bfloat16(q, k, v, packed_segments, scale, window)
    if packed_segments.num_shards > 1:
        out = trade_heads_for_tokens(out)
    return out[None], None


def choose_kernel(device_type: str, dtype: torch.dtype, head_size: int, value_size: int) -> Kernel:
    """Which kernel attends: by kind of device, type, and sizes of a head. Pure.

    ``varlen``: one flash kernel over the pack, of 16-bit types. A head's size is a multiple of 8, at most 256, and the
    same in queries and values. ``runs``: torch's own kernel, a call for each run of equal lengths. ``segments``: ours,
    for bfloat16 on a CPU.
    """
    if device_type == "cpu":
        return "runs" if dtype == torch.float32 else "segments"
    is_flash = dtype in (torch.bfloat16, torch.float16) and head_size == value_size
    return "varlen" if is_flash and head_size % 8 == 0 and head_size <= MOST_FLASH_HEAD else "runs"


def _bfloat16(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """``[N, Hq, D]``; which kernel a segment goes through depends on its length alone, so log-probs can be compared."""
    num_fused_tokens = sum(length * count for length, count in segments.fused_runs)
    sizes = [num_fused_tokens, len(q) - num_fused_tokens]
    (long_q, q), (long_k, k), (long_v, v) = (x.split(sizes) for x in (q, k, v))
    outputs = []
    if num_fused_tokens:
        outputs.append(by_runs(long_q, long_k, long_v, segments.fused_runs, scale, window))
    if len(q):
        outputs.append(segment_attention(q, k, v, segments.groups, scale, window))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def by_runs(
    q: Tensor, k: Tensor, v: Tensor, runs: Sequence[tuple[int, int]], scale: float, window: int | None
) -> Tensor:
    """One scaled_dot_product_attention per run of equal lengths. ``[N, Hq, D]``."""
    sizes = [length * count for length, count in runs]
    outputs = []
    # split, not slices: the backward of a slice fills a tensor of the whole pack with zeros, once per run.
    for (length, count), *run in zip(runs, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        # [count * length, H, D] -> [count, H, length, D], all views
        qs, ks, vs = (x.unflatten(0, (count, length)).transpose(1, 2) for x in run)
        mask = _band(length, window, q.device) if window is not None and length > window else None
        out = functional.scaled_dot_product_attention(
            qs, ks, vs, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """``[length, length]`` bool: token i sees the last `window` tokens up to and including itself."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def _varlen(q: Tensor, k: Tensor, v: Tensor, segments: Segments, scale: float, window: int | None) -> Tensor:
    """CUDA: one variable-length flash kernel. NOT RUN."""
    from torch.nn.attention.varlen import varlen_attn

    cu_seqlens, longest = segments.cu_seqlens, segments.longest
    window_size = (-1 if window is None else window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    result = varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scale, window_size=window_size, enable_gqa=grouped
    )
    assert isinstance(result, Tensor)
    return result


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)

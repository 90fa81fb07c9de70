"""Attention over packed sequences: each segment attends to itself, causally, and to nothing else.

Registered with transformers under `PACKED_ATTENTION`; a model loaded with that ``attn_implementation`` calls
`packed_attention` in every layer, with the keyword arguments of `attention_arguments` passed through the model's
forward. No mask is ever built: transformers makes none for an implementation without a mask function.

On a CPU the cost is the sum of squared segment lengths, not the square of the pack; neighbouring segments of one
length go through one batched call. On CUDA `torch.nn.attention.varlen.varlen_attn` does the same in one kernel
(written on torch's documented interface; NOT RUN here, there being no GPU).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from common.errors import VcppoError
from learner.packing import PackedBatch

PACKED_ATTENTION = "vcppo_packed"
_REFUSED = ("softcap", "s_aux", "position_bias")


def attention_arguments(batch: PackedBatch) -> dict[str, Any]:
    """Keyword arguments for the model's forward that carry the sequence boundaries to every layer."""
    longest = max(length for length, _ in batch.segments)
    return {"packed_cu_seqlens": batch.cu_seqlens, "packed_segments": batch.segments, "packed_longest": longest}


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed_cu_seqlens: Tensor,
    packed_segments: tuple[tuple[int, int], ...],
    packed_longest: int,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment.

    Args:
        query: ``[1, Hq, N, D]``; key, value: ``[1, Hkv, N, D]`` with Hkv dividing Hq.
        attention_mask: must be None; boundaries come from the packed_* arguments.

    Returns:
        ``[1, N, Hq, D]`` and no attention weights.
    """
    used = [name for name in _REFUSED if kwargs.get(name) is not None]
    if attention_mask is not None or dropout or used:
        raise VcppoError(
            f"packed attention can't do {', '.join(used) or ('dropout' if dropout else 'an attention mask')}, "
            f"which {type(module).__name__} asks for: choose another model.path (Qwen2, Qwen3, Llama, Mistral work)"
        )
    window = sliding_window if sliding_window is not None and sliding_window < packed_longest else None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [N, H, D]
    if query.is_cuda:
        out = _varlen(q, k, v, packed_cu_seqlens, packed_longest, scaling, window)
    else:
        out = _by_segments(q, k, v, packed_segments, scaling, window)
    return out[None], None


def _by_segments(
    q: Tensor, k: Tensor, v: Tensor, segments: tuple[tuple[int, int], ...], scaling: float | None, window: int | None
) -> Tensor:
    """One scaled_dot_product_attention per run of equal lengths. ``[N, Hq, D]``."""
    sizes = [length * count for length, count in segments]
    outputs = []
    # split, not slices: the backward of a slice fills a tensor of the whole pack with zeros, once per segment.
    for (length, count), *run in zip(segments, q.split(sizes), k.split(sizes), v.split(sizes), strict=True):
        # [count * length, H, D] -> [count, H, length, D], all views
        qs, ks, vs = (x.unflatten(0, (count, length)).transpose(1, 2) for x in run)
        mask = _band(length, window, q.device) if window is not None and length > window else None
        out = functional.scaled_dot_product_attention(
            qs, ks, vs, attn_mask=mask, is_causal=mask is None, scale=scaling, enable_gqa=q.shape[1] != k.shape[1]
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _band(length: int, window: int, device: torch.device) -> Tensor:
    """``[length, length]`` bool: token i sees the last `window` tokens up to and including itself."""
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    return (distance >= 0) & (distance < window)


def _varlen(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, longest: int, scaling: float | None, window: int | None
) -> Tensor:
    """CUDA: one variable-length flash kernel. NOT RUN."""
    from torch.nn.attention.varlen import varlen_attn

    window_size = (-1 if window is None else window - 1, 0)
    grouped = q.shape[1] != k.shape[1]
    result = varlen_attn(
        q, k, v, cu_seqlens, cu_seqlens, longest, longest, scale=scaling, window_size=window_size, enable_gqa=grouped
    )
    assert isinstance(result, Tensor)
    return result


ALL_ATTENTION_FUNCTIONS.register(PACKED_ATTENTION, packed_attention)

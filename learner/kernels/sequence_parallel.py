"""DeepSpeed-Ulysses: the tokens of a pack lie on several ranks, and attention trades tokens for heads.

    every rank: n tokens, all heads ──all-to-all──▶ all N = P·n tokens, its share of heads
                attention by segment, as on one rank
    every rank: n tokens, all heads ◀──all-to-all── all N tokens, its share of heads

Everything but attention works token by token, so it needs nothing from other ranks. The exchange is its own adjoint:
backward trades gradients the same way. Key heads that are fewer than ranks go to several of them.

Source: Jacobs et al., "DeepSpeed Ulysses" (arXiv 2309.14509).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed

from vcppo.common.errors import VcppoError
from vcppo.common.head_sharing import heads_problem

_group: Any = None


def use_group(group: Any) -> None:
    """The process group whose ranks share packs; None: nobody does."""
    global _group  # layers are transformers' own: nothing can be handed to them but the batch
    _group = group


def check_heads(num_heads: int, num_key_heads: int, size: int, model: str) -> None:
    """Raise VcppoError unless `size` ranks can share the heads of a layer of `model`."""
    if (problem := heads_problem(num_heads, num_key_heads, size, model)) is not None:
        raise VcppoError(problem)


def check_heads_of(config: Any, size: int, model: str) -> None:
    """The same of a transformers config, as soon as the model is loaded."""
    text = config.get_text_config()
    num_heads = int(text.num_attention_heads)
    check_heads(num_heads, int(getattr(text, "num_key_value_heads", None) or num_heads), size, model)


def trade_tokens_for_heads(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q ``[n, Hq, D]``, k ``[n, Hkv, D]``, v ``[n, Hkv, Dv]`` to ``[P·n, heads of this rank, ...]``. Collective."""
    size = distributed.get_world_size(_group)
    check_heads(q.shape[1], k.shape[1], size, "a layer")
    if k.shape[1] < size:  # a key head for each rank: those with one group of queries get the same one
        k, v = (x.repeat_interleave(size // x.shape[1], dim=1) for x in (k, v))
    by_rank = [x.unflatten(1, (size, -1)) for x in (q, k, v)]
    shapes = [x.shape[2:] for x in by_rank]
    together = torch.cat([x.flatten(2) for x in by_rank], dim=2)  # [n, P, all that goes to one rank]
    arrived = _exchange(together.transpose(0, 1)).flatten(0, 1)
    parts = arrived.split([shape.numel() for shape in shapes], dim=1)
    found = [part.unflatten(1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]
    return found[0], found[1], found[2]


def trade_heads_for_tokens(out: Tensor) -> Tensor:
    """``[P·n, heads of this rank, D]`` back to ``[n, all heads, D]``. Collective."""
    size = distributed.get_world_size(_group)
    return _exchange(out.unflatten(0, (size, -1))).transpose(0, 1).flatten(1, 2)


def _exchange(parts: Tensor) -> Tensor:
    """``[P, ...]``: part p goes to rank p; what comes back at r is from rank r."""
    found: Tensor = _Exchange.apply(parts)
    return found


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parts: Tensor) -> Tensor:
        return _all_to_all(parts)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return _all_to_all(grad_outputs[0])


def _all_to_all(parts: Tensor) -> Tensor:
    sent = parts.contiguous()
    arrived = torch.empty_like(sent)
    # As bytes: gloo knows fewer types than torch.
    distributed.all_to_all_single(arrived.view(torch.uint8), sent.view(torch.uint8), group=_group)
    return arrived

"""Which numbers of ranks can share the attention heads of a layer: learner.sequence_parallel_size."""

from __future__ import annotations


def can_share_heads(num_heads: int, num_key_heads: int, size: int) -> bool:
    """Whether each of `size` ranks gets as many query heads, and the key heads that those look at."""
    return num_heads % size == 0 and (num_key_heads % size == 0 or size % num_key_heads == 0)


def heads_problem(num_heads: int, num_key_heads: int, size: int, model: str) -> str | None:
    """Field, figures and remedy where `size` ranks can't share the heads of a layer of `model`; else None."""
    if size == 1 or can_share_heads(num_heads, num_key_heads, size):
        return None
    fitting = [str(n) for n in range(1, num_heads + 1) if can_share_heads(num_heads, num_key_heads, n)]
    return (
        f"learner.sequence_parallel_size = {size}: {model} has {num_heads} attention heads and"
        f" {num_key_heads} key heads, which {size} ranks can't share: set it to {' or '.join(fitting)}"
    )

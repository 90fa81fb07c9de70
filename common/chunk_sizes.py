"""How much of the logits the log-prob kernel holds at once, by kind of device. `vcppo plan` reckons with it too."""

from __future__ import annotations

from typing import NamedTuple


class ChunkSizes(NamedTuple):
    """Bounds of one block of logits.

    Attributes:
        tokens, vocab: a block is tokens × vocab float32.
        states: a vocabulary chunk holds at most so many weights, a token chunk so many hidden states.
    """

    tokens: int
    vocab: int
    states: int


CPU = ChunkSizes(256, 8192, 2**20)
"""8 MiB of logits, 4 MiB of weights: what a core's caches hold."""

CUDA = ChunkSizes(1024, 8192, 2**25)
"""32 MiB of logits, 128 MiB of weights. A product of this size takes tens of microseconds, several times what its
launch does: blocks as small as a CPU's would leave a GPU waiting for launches. NOT RUN: chosen by arithmetic."""


def chunk_sizes(device_type: str, tokens: int | None = None, vocab: int | None = None) -> ChunkSizes:
    """The bounds for ``cpu``, ``cuda`` or another of torch's device types.

    Args:
        tokens, vocab: what the config says (learner.log_prob_chunk_tokens, learner.log_prob_chunk_vocab); None: the
            device's own.
    """
    own = CPU if device_type == "cpu" else CUDA
    return own._replace(tokens=tokens or own.tokens, vocab=vocab or own.vocab)

"""Sums of a tensor's bytes: both ends of a weight transfer compute them, and the learner compares.

On a CPU the sum is CRC-32 (`zlib`: 3 GB/s on one core; every change of up to 32 neighbouring bits shows). On CUDA it is
computed where the tensor lies, by two weighted sums of 64-bit words. Both ends must hold the tensor on the same kind of
device. torch is not imported here: the functions use the methods of the tensors they are given.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

_COLUMNS = 4096
_ODD = 0x1E3779B97F4A7C15  # an odd constant without structure: multiplied by a position it gives that position's weight


def byte_sum(tensor: Any) -> Any:
    """Sum of a torch tensor's bytes in memory order.

    Returns:
        An int for a CPU tensor; a 0-d int64 tensor on the device otherwise, so that nothing waits for the device
        (`as_ints` reads them all at once).
    """
    flat = _bytes(tensor)
    if tensor.device.type == "cpu":
        return zlib.crc32(flat.numpy())
    return word_sum(flat)


def word_sum(flat: Any) -> Any:
    """The sum used off the CPU, of a flat uint8 tensor; 0-d int64.

    Words are first mixed (x ^ x >> 29, which loses nothing) and then multiplied by weights that depend on the position:
    odd ones by column, even ones by row, so that any single changed word changes the sum (an odd factor has an inverse
    modulo 2**64), and words that changed places do too.
    """
    if not flat.numel():
        return flat.new_zeros(()).long()
    padding = -flat.numel() % (8 * _COLUMNS if flat.numel() > 8 * _COLUMNS else 8)
    if padding or flat.storage_offset() % 8:  # words must lie on their boundaries
        extended = flat.new_zeros(flat.numel() + padding)
        extended[: flat.numel()] = flat
        flat = extended
    int64 = flat.new_zeros(0).long().dtype
    words = flat.view(int64)
    rows = words.view(-1, min(_COLUMNS, words.numel()))
    rows = rows ^ (rows >> 29)
    by_column, by_row = rows.sum(0), rows.sum(1)
    odd = (by_column.new_ones(len(by_column)).cumsum(0) * _ODD) * 2 + 1
    even = (by_row.new_ones(len(by_row)).cumsum(0) * _ODD) * 2
    return (by_column * odd).sum() + (by_row * even).sum()


def as_ints(sums: Sequence[Any]) -> list[int]:
    """Plain ints of what `byte_sum` gave."""
    return [int(each) for each in sums]


def names_sum(names: Iterable[str]) -> int:
    """Of the names in their order: both ends speak of the same tensors."""
    return zlib.crc32("\n".join(names).encode())


def _bytes(tensor: Any) -> Any:
    flat = tensor.detach().contiguous().reshape(-1)
    uint8 = flat.new_zeros(0).byte().dtype
    return flat.view(uint8)

"""Which part of which parameter lies where in the flat tensors of ZeRO, by rank. Pure.

ZeRO 1 and 2 put all parameters one after the other and cut the whole into equal parts. ZeRO 3 cuts each parameter into
equal parts. Either way a rank has one flat tensor per group, and a parameter is a few pieces of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol


class Layout(NamedTuple):
    """How an optimizer's state is cut: files of equal layouts fit as they are.

    Attributes:
        stage: of ZeRO, as it is computed (`vcppo.learner.engine.deepspeed_engine.EngineOptions.computed_stage`).
        num_ranks: that share it; 1 at stage 0, where every rank has all of it.
        dtype: of the weights; the optimizer's classes and files differ by it.
    """

    stage: int
    num_ranks: int
    dtype: str

    @classmethod
    def of(cls, stage: int, num_ranks: int, dtype: str) -> Layout:
        """The number of ranks does not matter where nothing is cut."""
        return cls(stage, num_ranks if stage else 1, dtype)

    def __str__(self) -> str:
        return f"ZeRO {self.stage}, {self.num_ranks} ranks, {self.dtype}"


class Address(Protocol):
    """DeepSpeed's ``fragment_address``: a stretch of a flat tensor."""

    start: int
    numel: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of one parameter, in elements of its flattened form.

    Attributes:
        start: where it begins in the parameter.
        rank: who has it.
        group: which of that rank's flat tensors.
        offset: where it begins there.
    """

    start: int
    numel: int
    rank: int
    group: int
    offset: int


def pieces_of_slices(slices: Sequence[Sequence[Mapping[str, Address]]]) -> dict[str, list[Piece]]:
    """ZeRO 1 and 2: by name, from the ``param_slice_mappings`` of all ranks in order (rank → group → name)."""
    found: dict[str, list[Piece]] = {}
    for rank, groups in enumerate(slices):
        for group, addresses in enumerate(groups):
            for name, address in addresses.items():
                before = found.setdefault(name, [])
                start = before[-1].start + before[-1].numel if before else 0
                before.append(Piece(start, address.numel, rank, group, address.start))
    return found


def pieces_of_parts(
    sizes: Mapping[str, int], flat_sizes: Sequence[int], num_ranks: int, ranks: Sequence[int] | None = None
) -> dict[str, list[Piece]]:
    """ZeRO 3: by name.

    Args:
        sizes: elements of each trained parameter, in the optimizer's order.
        flat_sizes: of one rank's flat tensors; they hold the parameters' parts in that order.
        ranks: of interest; None: all.

    Raises:
        ValueError: the parts do not fill the flat tensors.
    """
    found: dict[str, list[Piece]] = {}
    group, offset = 0, 0
    for name, size in sizes.items():
        part = -(-size // num_ranks)
        while group < len(flat_sizes) and offset == flat_sizes[group]:
            group, offset = group + 1, 0
        if group == len(flat_sizes) or offset + part > flat_sizes[group]:
            raise ValueError(f"{name}: its part of {part} elements does not fit the flat tensors {[*flat_sizes]}")
        found[name] = [
            Piece(rank * part, min(part, size - rank * part), rank, group, offset)
            for rank in (range(num_ranks) if ranks is None else ranks)
            if rank * part < size
        ]
        offset += part
    if offset != sum(flat_sizes[group:]):
        raise ValueError(f"the parameters fill {offset} elements of the last of the flat tensors {[*flat_sizes]}")
    return found

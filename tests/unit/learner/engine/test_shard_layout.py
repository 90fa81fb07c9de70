"""Parameters cut for some ranks are put together again from their pieces, and cut anew for others."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vcppo.learner.engine.saved_state import MASTER, SavedState
from vcppo.learner.engine.shard_layout import Layout, Piece, pieces_of_parts, pieces_of_slices

SHAPES = st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=6)


@dataclass
class Stretch:
    start: int
    numel: int


def parameters(shapes: list[list[int]]) -> dict[str, Tensor]:
    """Each element is another number."""
    total = torch.arange(1.0, 1.0 + sum(map(prod, shapes)))
    parts = total.split([prod(shape) for shape in shapes])
    return {f"p{i}": part.view(shape) for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))}


def saved(layout: Layout, whole: dict[str, Tensor], pieces: dict[str, list[Piece]], flats: list[Tensor]) -> SavedState:
    shapes = {name: tuple(tensor.shape) for name, tensor in whole.items()}
    return SavedState(layout, {}, {}, [], None, shapes, {}, {}, pieces, [[{MASTER: flat}] for flat in flats])


def cut_by_slices(whole: dict[str, Tensor], num_ranks: int) -> SavedState:
    """As ZeRO 1 and 2: one after the other, padded, in equal parts."""
    flat = torch.cat([tensor.flatten() for tensor in whole.values()])
    size = -(-flat.numel() // num_ranks)
    flats = list(torch.cat([flat, torch.zeros(size * num_ranks - flat.numel())]).split(size))
    slices, at = [[{}] for _ in range(num_ranks)], 0  # type: ignore[var-annotated]
    for name, tensor in whole.items():
        for rank in range(num_ranks):
            first, last = max(at, rank * size), min(at + tensor.numel(), (rank + 1) * size)
            if first < last:
                slices[rank][0][name] = Stretch(first - rank * size, last - first)
        at += tensor.numel()
    return saved(Layout.of(1, num_ranks, "float32"), whole, pieces_of_slices(slices), flats)


def cut_by_parts(whole: dict[str, Tensor], num_ranks: int) -> SavedState:
    """As ZeRO 3: each parameter padded and in equal parts."""
    flats: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    for tensor in whole.values():
        part = -(-tensor.numel() // num_ranks)
        padded = torch.cat([tensor.flatten(), torch.zeros(part * num_ranks - tensor.numel())])
        for rank, mine in enumerate(padded.split(part)):
            flats[rank].append(mine)
    joined = [torch.cat(mine) for mine in flats]
    sizes = {name: tensor.numel() for name, tensor in whole.items()}
    pieces = pieces_of_parts(sizes, [joined[0].numel()], num_ranks)
    return saved(Layout.of(3, num_ranks, "float32"), whole, pieces, joined)


@given(shapes=SHAPES, num_ranks=st.integers(1, 7), data=st.data())
@pytest.mark.parametrize("cut", [cut_by_slices, cut_by_parts])
def test_every_stretch_of_every_parameter_is_found(cut, shapes, num_ranks, data) -> None:
    whole = parameters(shapes)
    state = cut(whole, num_ranks)
    for name, tensor in whole.items():
        into = torch.full_like(tensor, torch.nan)
        state.copy_weight(name, into)
        assert torch.equal(into, tensor)
        start = data.draw(st.integers(0, tensor.numel() - 1))
        length = data.draw(st.integers(1, tensor.numel() - start))
        stretch = torch.full((length,), torch.nan)
        state.copy(MASTER, name, start, stretch)
        assert torch.equal(stretch, tensor.flatten()[start : start + length])


@given(shapes=SHAPES, num_ranks=st.integers(1, 7))
def test_parts_of_all_ranks_are_each_element_once(shapes: list[list[int]], num_ranks: int) -> None:
    sizes = {f"p{i}": prod(shape) for i, shape in enumerate(shapes)}
    flat = sum(-(-size // num_ranks) for size in sizes.values())
    everything = pieces_of_parts(sizes, [flat], num_ranks)
    for name, size in sizes.items():
        covered = [e for piece in everything[name] for e in range(piece.start, piece.start + piece.numel)]
        assert covered == list(range(size))
    for rank in range(num_ranks):
        mine = pieces_of_parts(sizes, [flat], num_ranks, [rank])
        assert mine == {name: [p for p in pieces if p.rank == rank] for name, pieces in everything.items()}


def test_parts_go_on_in_the_next_flat_tensor() -> None:
    pieces = pieces_of_parts({"a": 4, "b": 3, "c": 5}, [4, 3], 2, [1])
    assert pieces == {"a": [Piece(2, 2, 1, 0, 0)], "b": [Piece(2, 1, 1, 0, 2)], "c": [Piece(3, 2, 1, 1, 0)]}


@pytest.mark.parametrize("flat_sizes", [[3], [6], [2, 4], []])
def test_flat_tensors_of_another_model_are_refused(flat_sizes: list[int]) -> None:
    with pytest.raises(ValueError, match="flat tensors"):
        pieces_of_parts({"a": 4, "b": 3}, flat_sizes, 2)


def test_what_is_not_there_is_named() -> None:
    state = cut_by_parts(parameters([[3], [2, 2]]), 2)
    with pytest.raises(ValueError, match="4 of 5 elements of fp32 of p1"):
        state.copy(MASTER, "p1", 0, torch.zeros(5))
    with pytest.raises(ValueError, match="no head"):
        state.copy_weight("head", torch.zeros(1))


def test_where_nothing_is_cut_ranks_do_not_matter() -> None:
    assert Layout.of(0, 1, "float32") == Layout.of(0, 8, "float32")
    assert Layout.of(1, 1, "float32") != Layout.of(1, 8, "float32")
    assert str(Layout.of(3, 2, "bfloat16")) == "ZeRO 3, 2 ranks, bfloat16"

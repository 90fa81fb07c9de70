"""The sums of transferred weights: any changed byte and any exchange of places shows."""

from __future__ import annotations

import zlib

import pytest
import torch

from vcppo.common.tensor_sums import byte_sum, names_sum, word_sum

SIZES = [1, 7, 8, 9, 4095, 8 * 4096, 8 * 4096 + 3, 100_003]


def random_bytes(size: int) -> torch.Tensor:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(size))


def test_on_a_cpu_it_is_the_crc_of_the_bytes_whatever_the_type_and_layout() -> None:
    tensor = torch.randn(6, 4).T
    assert byte_sum(tensor) == zlib.crc32(tensor.contiguous().numpy().tobytes())
    assert byte_sum(tensor.bfloat16()) == zlib.crc32(tensor.bfloat16().contiguous().view(torch.int16).numpy().tobytes())
    assert byte_sum(torch.zeros(0, 4)) == 0
    assert byte_sum(torch.tensor(2.5)) == zlib.crc32(torch.tensor([2.5]).numpy().tobytes())


@pytest.mark.parametrize("size", SIZES)
def test_any_flipped_bit_changes_the_sum_used_on_a_device(size: int) -> None:
    plain = random_bytes(size)
    reference = int(word_sum(plain))
    assert int(word_sum(plain.clone())) == reference
    for position in {0, size // 2, size - 1}:
        for bit in range(8):
            changed = plain.clone()
            changed[position] ^= 1 << bit
            assert int(word_sum(changed)) != reference


def test_an_empty_tensor_and_one_that_lies_off_its_boundary_have_a_sum_too() -> None:
    assert int(word_sum(random_bytes(0))) == 0
    assert int(word_sum(random_bytes(17)[1:])) == int(word_sum(random_bytes(17)[1:].clone()))


def test_the_top_bits_of_two_words_do_not_cancel() -> None:
    plain = random_bytes(8 * 10_000)
    changed = plain.clone()
    for word in (17, 5017):
        changed[8 * word + 7] ^= 0x80
    assert int(word_sum(changed)) != int(word_sum(plain))


def test_words_that_change_places_change_the_sum() -> None:
    words = random_bytes(8 * 10_000).view(torch.int64)
    reference = int(word_sum(words.view(torch.uint8)))
    for a, b in ((0, 1), (3, 4096 + 3), (5, 6 + 4096)):
        changed = words.clone()
        changed[a], changed[b] = words[b], words[a]
        assert int(word_sum(changed.view(torch.uint8))) != reference


def test_names_count_with_their_order() -> None:
    assert names_sum(["a", "b"]) != names_sum(["b", "a"])
    assert names_sum(["a", "b"]) == names_sum(iter(["a", "b"]))

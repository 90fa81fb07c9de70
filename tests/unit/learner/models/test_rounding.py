"""The learner's measure of its own rounding, against rounding itself."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vcppo.learner.models.rounding import BFLOAT16, FLOAT32, last_place, rounded_differently


def model() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(64, 8))


@torch.no_grad()
def test_it_explains_what_bfloat16_does() -> None:
    plain = model()
    rounded = copy.deepcopy(plain).bfloat16()
    plain = copy.deepcopy(rounded).float()  # the same weights
    x = torch.randn(500, 64).bfloat16()
    exact = plain(x.float())
    real = (rounded(x).float() - exact).abs().mean()
    with rounded_differently(rounded, BFLOAT16):
        explained = (rounded(x).float() - exact).abs().mean()
    assert 1.0 < float(explained / real) < 8.0


@torch.no_grad()
def test_it_is_the_same_each_time_and_leaves_nothing_behind() -> None:
    module, x = model(), torch.randn(5, 64)
    before = module(x)
    seen = []
    for _ in range(2):
        with rounded_differently(module, FLOAT32):
            seen.append(module(x))
    assert torch.equal(*seen)
    assert not torch.equal(seen[0], before)
    assert torch.equal(module(x), before)


def test_the_coarser_type_counts() -> None:
    assert last_place(("float32", "auto")) == FLOAT32
    assert last_place(("float32", "bfloat16")) == last_place(("bfloat16", "auto")) == BFLOAT16


@torch.no_grad()
def test_larger_noise_moves_more() -> None:
    module, x = model(), torch.randn(50, 64)
    before = module(x)
    moved = []
    for size in (FLOAT32, BFLOAT16):
        with rounded_differently(module, size):
            moved.append(float((module(x) - before).abs().mean()))
    assert moved[1] / moved[0] == pytest.approx(BFLOAT16 / FLOAT32, rel=0.1)

"""Two-hot and HL-Gauss against their papers in plain float64, and what must hold for any return."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.common.config import VcppoConfig
from vcppo.learner.algorithm.value_bins import ValueBins, categorical_value_loss

TWO_HOT = ValueBins(-1.0, 1.0, 11)
HL_GAUSS = ValueBins(-1.0, 1.0, 21, sigma_ratio=0.75)
both = pytest.mark.parametrize("bins", [TWO_HOT, HL_GAUSS], ids=["two_hot", "hl_gauss"])

ranges = st.tuples(st.floats(-50, 50), st.floats(0.1, 100)).map(lambda pair: (pair[0], pair[0] + pair[1]))
two_hots = st.builds(lambda ends, m: ValueBins(*ends, m), ranges, st.integers(2, 200))
gausses = st.builds(
    lambda ends, ratio, more: ValueBins(*ends, int(6 * ratio) + more, ratio),
    ranges, st.floats(0.5, 3), st.integers(2, 100),
)  # fmt: skip
shares = st.floats(0, 1)


def float64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def expected_projection(bins: ValueBins, value: float) -> list[float]:
    if bins.sigma_ratio is None:
        return oracle.two_hot(value, np.linspace(bins.low, bins.high, bins.num_bins).tolist())
    # The range is inner bins wide, and three deviations are on each side of it.
    width = (bins.high - bins.low) / (bins.num_bins - 6 * bins.sigma_ratio)
    sigma = bins.sigma_ratio * width
    edges = np.linspace(bins.low - 3 * sigma, bins.high + 3 * sigma, bins.num_bins + 1).tolist()
    return oracle.hl_gauss(min(max(value, bins.low), bins.high), edges, sigma)


@both
@pytest.mark.parametrize("value", [-1.0, -0.99, -0.2, 0.0, 0.07, 0.6, 1.0, 1.5, -40.0])
def test_projections_are_the_papers(bins: ValueBins, value: float) -> None:
    (found,) = bins.project(float64(value))
    assert found.numpy() == pytest.approx(expected_projection(bins, value), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.one_of(two_hots, gausses), shares)
def test_a_projection_is_a_distribution(bins: ValueBins, share: float) -> None:
    (found,) = bins.project(float64(bins.low + share * (bins.high - bins.low)))
    assert len(found) == bins.num_bins
    assert (found >= 0).all()
    assert float(found.sum()) == pytest.approx(1, abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(two_hots, shares)
def test_the_mean_of_two_hot_is_the_return(bins: ValueBins, share: float) -> None:
    value = bins.low + share * (bins.high - bins.low)
    (found,) = bins.project(float64(value))
    assert float(found @ bins.centres(found)) == pytest.approx(value, abs=1e-9 * (1 + abs(value)))
    assert int((found > 1e-9).sum()) <= 2


@settings(max_examples=200, deadline=None)
@given(gausses, shares)
def test_the_mean_of_hl_gauss_is_the_return_but_for_what_its_margin_cuts_off(bins: ValueBins, share: float) -> None:
    value = bins.low + share * (bins.high - bins.low)
    (found,) = bins.project(float64(value))
    assert bins.sigma_ratio is not None
    # Cutting a Gaussian three deviations from its mean moves the mean by 0.0045 of them; at half a bin's width the
    # bins' own rounding is 2/pi exp(-pi^2/2) of half a width.
    allowed = 0.0046 * bins.sigma_ratio * bins.width + 0.0024 * bins.width
    assert abs(float(found @ bins.centres(found)) - value) <= allowed


@both
def test_what_is_beyond_the_range_counts_as_its_end(bins: ValueBins) -> None:
    beyond, ends = bins.project(float64(-7.0, 9.0)), bins.project(float64(-1.0, 1.0))
    assert torch.equal(beyond, ends)
    means = beyond @ bins.centres(beyond)
    assert means.numpy() == pytest.approx([-1, 1], abs=1e-3)


@both
def test_the_value_is_the_mean_under_the_softmax(bins: ValueBins) -> None:
    logits = torch.randn(4, bins.num_bins, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centres = bins.centres(logits).tolist()
    for row, found in zip(logits.tolist(), bins.mean(logits).tolist(), strict=True):
        assert found == pytest.approx(sum(p * c for p, c in zip(oracle.softmax(row), centres, strict=True)))
    uniform = torch.zeros(1, bins.num_bins, dtype=torch.float64)
    assert float(bins.mean(uniform)) == pytest.approx((bins.low + bins.high) / 2, abs=1e-12)


@both
def test_the_loss_is_the_masked_cross_entropy_over_the_global_count(bins: ValueBins) -> None:
    logits = torch.randn(5, bins.num_bins, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets, mask = float64(-1, 0.3, 1, 2, 0), torch.tensor([True, True, False, True, True])
    loss = categorical_value_loss(logits, targets, bins, num_tokens=9, mask=mask)
    terms = [
        oracle.cross_entropy(expected_projection(bins, target), row)
        for target, row, counts in zip(targets.tolist(), logits.tolist(), mask.tolist(), strict=True)
        if counts
    ]
    assert float(loss.value) == pytest.approx(sum(terms) / 9)
    assert float(loss.sums["value_loss"]) == pytest.approx(sum(terms))
    assert float(loss.sums["num_tokens"]) == 4


@both
def test_gradients_of_loss_and_value(bins: ValueBins) -> None:
    logits = torch.randn(3, bins.num_bins, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    logits.requires_grad_()
    targets, mask = float64(-1, 0.2, 1), torch.tensor([True, True, False])
    assert torch.autograd.gradcheck(
        lambda x: categorical_value_loss(x, targets, bins, num_tokens=7, mask=mask).value, [logits]
    )
    assert torch.autograd.gradcheck(bins.mean, [logits])


@both
def test_micro_batches_add_up_and_a_dummy_has_a_loss_of_zero(bins: ValueBins) -> None:
    logits = torch.randn(6, bins.num_bins, generator=torch.Generator().manual_seed(3)).requires_grad_()
    targets = torch.linspace(-1, 1, 6)
    categorical_value_loss(logits, targets, bins, num_tokens=6).value.backward()
    assert logits.grad is not None
    whole, logits.grad = logits.grad, None
    for part in (slice(0, 2), slice(2, 2), slice(2, 6)):
        categorical_value_loss(logits[part], targets[part], bins, num_tokens=6).value.backward()
    torch.testing.assert_close(logits.grad, whole)


@both
def test_descent_on_the_loss_finds_the_mean_of_the_returns(bins: ValueBins) -> None:
    """As the squared error does: a state that is right half of the time has the value 0."""
    logits = torch.zeros(1, bins.num_bins, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    returns = float64(1, -1, 1, 1).float()
    for _ in range(400):
        optimizer.zero_grad()
        categorical_value_loss(logits.expand(4, -1), returns, bins, num_tokens=4).value.backward()
        optimizer.step()
    assert bins.mean(logits).item() == pytest.approx(0.5, abs=0.01)


def test_bins_of_the_config() -> None:
    def bins_of(critic: dict[str, object], **task: object) -> ValueBins | None:
        return ValueBins.of(VcppoConfig.model_validate({"model": {"path": "m"}, "critic": critic, "task": task}))

    assert bins_of({}) is None
    found = bins_of({"head": "two_hot", "num_bins": 7}, reward_correct=2.0, reward_wrong=0.5)
    assert found == ValueBins(0.0, 2.0, 7)  # a discount takes a return of 0.5 to nearly 0
    assert bins_of({"head": "two_hot"}, reward_range=[-4.0, 3.0]) == ValueBins(-4.0, 3.0, 51)
    assert bins_of({"head": "two_hot"}, soft_overlong_cache=9) == ValueBins(-2.0, 1.0, 51)
    given = bins_of({"head": "hl_gauss", "value_min": -3.0, "value_max": 4.0, "sigma_ratio": 1.0})
    assert given is not None
    assert given == ValueBins(-3.0, 4.0, 51, 1.0)
    edges = [c - given.width / 2 for c in given.centres(float64()).tolist()]
    assert all(b - a == pytest.approx(given.width) for a, b in itertools.pairwise(edges))
    assert edges[0] == pytest.approx(-3 - 3 * given.width)

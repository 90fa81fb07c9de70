"""Losses against the summands of the paper, and what must not carry gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.learner.algorithm.losses import kl_penalty, policy_loss, value_loss

numbers = st.floats(-2, 2, width=32)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(numbers, numbers, numbers, st.booleans()), min_size=1, max_size=8))
def test_policy_loss_is_the_masked_clipped_sum_over_the_global_count(rows):
    new, old, advantages, mask = (torch.tensor(column) for column in zip(*rows, strict=True))
    loss = policy_loss(new, old, advantages, num_tokens=20, clip_low=0.2, clip_high=0.3, mask=mask)
    terms = [oracle.clipped_objective(math.exp(n - o), a, 0.2, 0.3) for n, o, a, m in rows if m]
    assert loss.value.item() == pytest.approx(-math.fsum(terms) / 20, rel=1e-5, abs=1e-6)
    assert loss.sums["policy_loss"].item() == pytest.approx(-math.fsum(terms), rel=1e-5, abs=1e-5)
    assert loss.sums["num_tokens"].item() == sum(m for *_, m in rows)


def test_micro_batches_add_up_to_the_whole() -> None:
    new, old, advantages = torch.randn(3, 11, generator=torch.Generator().manual_seed(0))
    new.requires_grad_()
    settings = {"num_tokens": 11, "clip_low": 0.2, "clip_high": 0.2}
    policy_loss(new, old, advantages, **settings).value.backward()
    whole = new.grad.clone()
    new.grad = None
    for part in (slice(0, 4), slice(4, 4), slice(4, 11)):
        policy_loss(new[part], old[part], advantages[part], **settings).value.backward()
    torch.testing.assert_close(new.grad, whole)


def test_gradient_stops_where_the_clip_is_active_and_against_the_advantage_only() -> None:
    log_ratio = torch.tensor([0.5, 0.5, -0.5, -0.5], requires_grad=True)  # ratios 1.65 and 0.61
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    loss = policy_loss(log_ratio, torch.zeros(4), advantages, num_tokens=4, clip_low=0.2, clip_high=0.2)
    loss.value.backward()
    assert (log_ratio.grad != 0).tolist() == [False, True, True, False]
    assert loss.sums["clipped"].item() == 2


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    new = torch.zeros(3, requires_grad=True)
    old, behaviour = torch.zeros(3, requires_grad=True), torch.tensor([math.log(4.0), 0.0, -math.log(4.0)])
    advantages = torch.ones(3)
    arguments = {"num_tokens": 1, "clip_low": 0.2, "clip_high": 0.2, "behaviour_log_probs": behaviour}
    loss = policy_loss(new, old.detach(), advantages, importance_truncation=2.0, **arguments)
    loss.value.backward()
    assert (-new.grad).tolist() == pytest.approx([0.25, 1.0, 2.0])  # min(pi_old / pi_behaviour, 2)
    assert loss.sums["behaviour_gap"].item() == pytest.approx(2 * math.log(4.0))
    uncorrected = policy_loss(new, old.detach(), advantages, **arguments)
    assert uncorrected.sums["importance_weight"].item() == 3.0
    with pytest.raises(ValueError, match="needs behaviour_log_probs"):
        policy_loss(new, old, advantages, num_tokens=1, clip_low=0.2, clip_high=0.2, importance_truncation=2.0)


def test_a_ratio_beyond_floats_stays_finite() -> None:
    new = torch.tensor([500.0], requires_grad=True)
    loss = policy_loss(new, torch.zeros(1), torch.tensor([-1.0]), num_tokens=1, clip_low=0.2, clip_high=0.2)
    loss.value.backward()
    assert torch.isfinite(loss.value) and torch.isfinite(new.grad).all()


def test_value_loss_is_half_the_squared_error() -> None:
    values, targets = torch.tensor([1.0, 2.0, 5.0]), torch.tensor([0.0, 4.0, 0.0])
    mask = torch.tensor([True, True, False])
    loss = value_loss(values, targets, num_tokens=4, mask=mask)
    assert loss.value.item() == pytest.approx(0.5 * (1 + 4) / 4)
    assert loss.sums["value_loss"].item() == pytest.approx(2.5)


def test_value_clip_takes_the_worse_of_both_and_needs_old_values() -> None:
    values, targets, old = torch.tensor([1.0]), torch.tensor([1.0]), torch.tensor([0.0])
    clipped = value_loss(values, targets, num_tokens=1, old_values=old, value_clip=0.2)
    assert clipped.value.item() == pytest.approx(0.5 * 0.8**2)
    with pytest.raises(ValueError, match=r"value_clip=0\.2 needs old_values"):
        value_loss(values, targets, num_tokens=1, value_clip=0.2)


@settings(max_examples=50, deadline=None)
@given(numbers, numbers)
def test_kl_penalty_is_k3_and_never_negative(log_prob, reference):
    penalty = kl_penalty(torch.tensor([log_prob]), torch.tensor([reference]), num_tokens=1).value.item()
    d = reference - log_prob
    assert penalty == pytest.approx(math.exp(d) - d - 1, rel=1e-4, abs=1e-5)
    assert penalty >= -1e-6


def test_an_empty_micro_batch_has_zero_loss_with_a_gradient_path() -> None:
    none = torch.zeros(0, requires_grad=True)
    policy = policy_loss(none, none.detach(), none.detach(), num_tokens=3, clip_low=0.2, clip_high=0.2)
    value = value_loss(none, none.detach(), num_tokens=3)
    (policy.value + value.value).backward()
    assert policy.value.item() == 0 and value.value.item() == 0 and none.grad.shape == (0,)

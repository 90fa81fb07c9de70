"""Losses against the summands of the paper, and what must not carry gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.rig import oracle
from vcppo.learner.algorithm.losses import KlEstimator, kl_estimate, kl_penalty, policy_loss, value_loss

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


def test_importance_weights_multiply_each_summand_and_carry_no_gradient() -> None:
    new, weights = torch.zeros(3, requires_grad=True), torch.tensor([0.25, 1.0, 2.0])
    arguments = {"num_tokens": 1, "clip_low": 0.2, "clip_high": 0.2}
    loss = policy_loss(new, torch.zeros(3), torch.ones(3), importance_weights=weights, **arguments)
    loss.value.backward()
    assert (-new.grad).tolist() == pytest.approx([0.25, 1.0, 2.0])
    assert loss.value.item() == pytest.approx(-3.25)


def test_a_ratio_beyond_floats_stays_finite() -> None:
    new = torch.tensor([500.0], requires_grad=True)
    loss = policy_loss(new, torch.zeros(1), torch.tensor([-1.0]), num_tokens=1, clip_low=0.2, clip_high=0.2)
    loss.value.backward()
    assert torch.isfinite(loss.value) and torch.isfinite(new.grad).all()
    assert loss.sums["ratio"].item() == pytest.approx(math.exp(5))  # not e^20: it is part of a mean
    assert loss.sums["approx_kl"].item() == pytest.approx(math.exp(5) - 6)


def test_kl_penalty_far_below_the_reference_is_bounded_and_still_pulls_back() -> None:
    log_probs = torch.tensor([-30.0, -4.0], requires_grad=True)
    loss = kl_penalty(log_probs, torch.zeros(2), num_tokens=1)
    loss.value.backward()
    tangent = math.exp(5) * (1 + 25) - 30 - 1
    assert loss.value.item() == pytest.approx(tangent + math.exp(4) - 5, rel=1e-5)
    assert log_probs.grad.tolist() == pytest.approx([1 - math.exp(5), 1 - math.exp(4)], rel=1e-5)


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


def kl_gradients(estimator: KlEstimator, away: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of a policy over five tokens, exactly: the KL's gradient, the estimator's in a loss, and as a reward."""
    generator = torch.Generator().manual_seed(4)
    reference = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    moved = reference + away * torch.randn(5, generator=generator, dtype=torch.float64)
    logits = moved.requires_grad_()
    log_probs = logits.log_softmax(0)
    chance = log_probs.exp().detach()
    each = kl_estimate(log_probs, reference, estimator)
    wanted = (log_probs.exp() * (log_probs - reference)).sum()
    in_loss, as_reward = (chance * each).sum(), (chance * each.detach() * log_probs).sum()
    kl, loss, reward = (
        torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (wanted, in_loss, as_reward)
    )
    return kl, loss, reward


def test_which_estimator_holds_back_depends_on_where_it_stands() -> None:
    """In a loss the mean gradient of k2 is the KL's and that of k1 is 0; in a reward k1's is. k2 and k3 in a reward
    vanish near the reference: halve the distance, and they fall to a quarter of it and less, where the KL's halves."""
    for estimator, right in (("k1", "reward"), ("k2", "loss")):
        kl, loss, reward = kl_gradients(estimator, 0.5)
        torch.testing.assert_close({"loss": loss, "reward": reward}[right], kl, rtol=1e-9, atol=1e-12)
    assert kl_gradients("k1", 0.5)[1].abs().max() < 1e-12
    for estimator in ("k2", "k3"):
        far, near = kl_gradients(estimator, 0.02), kl_gradients(estimator, 0.01)
        assert (near[0].norm() / far[0].norm()).item() == pytest.approx(0.5, abs=0.02)
        assert (near[2].norm() / far[2].norm()).item() < 0.27
        assert near[2].norm() < 0.03 * near[0].norm()


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimates_have_the_gradients_of_finite_differences(estimator: KlEstimator) -> None:
    log_probs = torch.tensor([-0.3, -2.0, -7.5], dtype=torch.float64, requires_grad=True)  # the last beyond d = 5
    reference = torch.tensor([-0.4, -1.5, -0.5], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda p: kl_estimate(p, reference, estimator), (log_probs,))
    within = [oracle.kl_estimate(p, q, estimator) for p, q in ((-0.3, -0.4), (-2.0, -1.5))]
    assert kl_estimate(log_probs, reference, estimator)[:2].tolist() == pytest.approx(within, rel=1e-12)

"""Ends, baselines and whitening."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from vcppo.learner.algorithm.advantages import (
    group_centred_advantages,
    group_mean_advantages,
    leave_one_out_advantages,
    length_adaptive_lambda,
    place_ends,
    spread_over_actions,
    whiten,
)

CU = np.array([0, 3, 3, 5], np.int64)  # three sequences, the middle one without an action
REWARDS = np.array([1.0, 7.0, -1.0])
LAST = np.array([0.25, 0.5, 0.75])
CUT = np.array([False, False, True])


def test_the_reward_is_on_the_last_action_and_a_cut_is_an_end() -> None:
    ends = place_ends(REWARDS, LAST, CUT, CU, "terminal")
    assert ends.rewards.tolist() == [0, 0, 1, 0, -1]
    assert ends.bootstrap_values.tolist() == [0, 0, 0]
    assert ends.mask.all()


def test_bootstrap_puts_the_value_in_place_of_the_unseen_outcome() -> None:
    ends = place_ends(REWARDS, LAST, CUT, CU, "bootstrap")
    assert ends.rewards.tolist() == [0, 0, 1, 0, 0]
    assert ends.bootstrap_values.tolist() == [0, 0, 0.75]
    assert ends.mask.all()


def test_mask_trains_on_no_token_of_a_cut_response() -> None:
    ends = place_ends(REWARDS, LAST, CUT, CU, "mask")
    assert ends.mask.tolist() == [True, True, True, False, False]
    assert ends.bootstrap_values.tolist() == [0, 0, 0]


def test_length_adaptive_lambda_is_clamped() -> None:
    lam = length_adaptive_lambda(np.array([0, 1, 101], np.int64), alpha=0.05)
    assert lam.tolist() == pytest.approx([0.0, 1 - 1 / (0.05 * 100)])


def test_group_centred_is_the_reward_less_its_groups_mean() -> None:
    rewards, groups = np.array([1.0, -1.0, 1.0, -1.0, -1.0, 3.0]), ["b", "a", "b", "a", "b", "alone"]
    assert group_centred_advantages(rewards, groups).tolist() == pytest.approx([2 / 3, 0, 2 / 3, 0, -4 / 3, 0])
    alike = group_centred_advantages(np.full(3, 0.1), ["a"] * 3)
    assert alike.tolist() == [0, 0, 0]  # exactly, though three times 0.1 over three is not 0.1


def test_group_baselines() -> None:
    rewards, groups = np.array([1.0, -1.0, 1.0, -1.0, -1.0, 3.0]), ["b", "a", "b", "a", "b", "alone"]
    b = np.array([1.0, 1.0, -1.0])
    standardised = (b - b.mean()) / b.std()
    mean = group_mean_advantages(rewards, groups)
    assert mean[[0, 2, 4]] == pytest.approx(standardised, rel=1e-5)
    assert mean[[1, 3, 5]].tolist() == [0, 0, 0]  # all alike: nothing to learn
    out = leave_one_out_advantages(rewards, groups)
    assert out.tolist() == pytest.approx([1 - 0.0, 0, 1 - 0.0, 0, -1 - 1.0, 0])


def test_spread_over_actions() -> None:
    assert spread_over_actions(np.array([1.0, 2.0, 3.0]), CU).tolist() == [1, 1, 1, 3, 3]


def test_whitening_ignores_masked_out_actions() -> None:
    advantages = np.array([1.0, 2.0, 3.0, 1e6], np.float32)
    mask = np.array([True, True, True, False])
    white = whiten(advantages, mask)
    assert white[:3].mean() == pytest.approx(0, abs=1e-6) and white[:3].std() == pytest.approx(1, rel=1e-5)
    assert white[3] == 0


def test_whitening_over_ranks_is_whitening_of_all_with_an_empty_rank_joining() -> None:
    """Three ranks played one after the other: the collective is replayed from what each contributed."""
    rng = np.random.default_rng(0)
    shares = [
        rng.normal(1000, 3, 50).astype(np.float32),
        np.zeros(0, np.float32),
        rng.normal(990, 1, 7).astype(np.float32),
    ]
    masks = [rng.random(len(s)) < 0.7 for s in shares]
    whole = whiten(np.concatenate(shares), np.concatenate(masks))
    kept = [s[m].astype(np.float64) for s, m in zip(shares, masks, strict=True)]
    total, count = sum(k.sum() for k in kept), sum(k.size for k in kept)
    squares = sum(np.square(k - total / count).sum() for k in kept)
    parts = []
    for share, mask in zip(shares, masks, strict=True):
        sums = iter([np.array([total, count]), np.array([squares])])
        calls = []

        def reduce(vector: np.ndarray, sums=sums, calls=calls) -> np.ndarray:
            calls.append(vector.shape)
            return next(sums)

        parts.append(whiten(share, mask, reduce))
        assert calls == [(2,), (1,)]  # every rank, also the empty one, joins both collectives
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", [group_mean_advantages, leave_one_out_advantages])
@pytest.mark.parametrize("reward", [0.1, 1 / 3, -1.0, 1e5, 0.7])
def test_a_group_of_equal_rewards_is_exactly_zero(estimator: Callable[..., np.ndarray], reward: float) -> None:
    """Also where the mean of equal numbers is not that number: (0.1 + 0.1 + 0.1) / 3 > 0.1."""
    for size in (1, 2, 3, 6, 7, 8):
        rewards = np.array([reward] * size + [0.0, 1.0])
        advantages = estimator(rewards, ["alike"] * size + ["unlike"] * 2)
        assert advantages[:size].tolist() == [0.0] * size
        assert advantages[-1] > 0


def test_whitening_that_only_scales_keeps_zeros_and_signs() -> None:
    advantages = np.array([0.0, 3.0, -1.0, 0.0, 1e6], np.float32)
    mask = np.array([True, True, True, True, False])
    white = whiten(advantages, mask, centre=False)
    rms = np.sqrt((9 + 1) / 4)
    assert white.tolist() == pytest.approx([0, 3 / rms, -1 / rms, 0, 0], rel=1e-6)
    assert white[0] == white[3] == 0.0
    nothing = whiten(np.zeros(3, np.float32), np.ones(3, np.bool_), centre=False)
    assert nothing.tolist() == [0, 0, 0]

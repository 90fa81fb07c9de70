"""The critic beside the prompt's mean: against the literal formula, on the same tokens, null where undefined."""

from __future__ import annotations

import time

import numpy as np
import pytest

from tests.unit.rig import oracle
from vcppo.learner.critic_quality.explained_variance import position_deciles
from vcppo.learner.critic_quality.vs_prompt_mean import critic_worth

rng = np.random.default_rng(0)
LENGTHS = np.array([30, 4, 12, 1, 20, 9])
CU = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64)
GROUPS = ["a", "a", "b", "b", "b", "alone"]
OUTCOMES = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0]
OTHERS = [-1.0, 1.0, 0.0, 0.0, 1.0]  # by hand: the mean outcome of the others of a prompt
STALENESS = np.array([0, 1, 0, 0, 2, 5])
RETURNS = np.repeat(OUTCOMES, LENGTHS)
VALUES = RETURNS * 0.5 + rng.normal(0, 0.4, len(RETURNS))
KEPT = slice(0, int(CU[5]))  # without the response that has no companion


def worth(values: np.ndarray = VALUES, returns: np.ndarray = RETURNS, num_buckets: int = 3):
    return critic_worth(values, returns, CU, GROUPS, STALENESS, num_buckets)


def by_token(per_response: list[float]) -> list[float]:
    return [each for each, length in zip(per_response, LENGTHS, strict=False) for _ in range(length)]


ONES = [1.0] * int(CU[5])
SHARES = by_token([1.0 / length for length in LENGTHS[:5]])


@pytest.mark.parametrize(("name", "weights"), [("token", ONES), ("sequence", SHARES)])
def test_both_predictors_are_weighed_alike_on_the_same_tokens(name: str, weights: list[float]) -> None:
    found, returns = worth(), RETURNS[KEPT].tolist()
    critic = oracle.explained_variance(VALUES[KEPT].tolist(), returns, weights)
    prompt_mean = oracle.explained_variance(by_token(OTHERS), returns, weights)
    assert getattr(found.critic, name) == pytest.approx(critic)
    assert getattr(found.prompt_mean, name) == pytest.approx(prompt_mean)
    assert found.num_responses == 5


def test_within_a_prompt_the_mean_of_others_scores_below_zero_by_its_formula() -> None:
    """Four prompts of n responses each: 1 - (n / (n - 1))^2, whatever the outcomes; a critic may do better."""
    n, length = 4, 6
    outcomes = rng.choice([-1.0, 1.0], 4 * n)
    outcomes[:2] = 1.0, -1.0
    cu = np.arange(0, 4 * n * length + 1, length)
    returns = np.repeat(outcomes, length)
    groups = [f"p{i // n}" for i in range(4 * n)]
    found = critic_worth(returns * 0.5, returns, cu, groups, np.zeros(4 * n, np.int64), 1)
    assert found.prompt_mean.within_prompt == pytest.approx(1 - (n / (n - 1)) ** 2)
    assert found.critic.within_prompt == pytest.approx(0.75)


def test_the_responses_own_outcome_is_not_in_its_baseline() -> None:
    """Outcomes that are pure noise: a mean with the response itself in it would explain 1/n of it, seemingly."""
    n, prompts = 4, 500
    returns = rng.choice([-1.0, 1.0], n * prompts)
    cu = np.arange(n * prompts + 1)
    groups = [f"p{i // n}" for i in range(n * prompts)]
    found = critic_worth(np.zeros_like(returns), returns, cu, groups, np.zeros(n * prompts, np.int64), 1)
    assert found.prompt_mean.token < -0.2  # 1 - (1 + 1 / (n - 1)) = -1/3 in expectation
    assert found.critic.token == pytest.approx(0.0)


def test_by_position_and_by_staleness_look_at_one_bucket_at_a_time() -> None:
    found, decile = worth(), position_deciles(CU)[KEPT]
    staleness = np.repeat(STALENESS, LENGTHS)[KEPT]
    for predictor, predicted in ((found.critic, VALUES[KEPT]), (found.prompt_mean, np.array(by_token(OTHERS)))):
        for buckets, number, result in (
            *((decile, d, predictor.by_position[d]) for d in range(10)),
            *((staleness, b, predictor.by_staleness[b]) for b in range(3)),
        ):
            at = buckets == number
            returns = RETURNS[KEPT][at]
            if len(set(returns)) < 2:
                assert result is None
                continue
            wanted = oracle.explained_variance(predicted[at].tolist(), returns.tolist(), [1.0] * int(at.sum()))
            assert result == pytest.approx(wanted)
    assert found.critic.by_staleness[1] is None  # one response: its return does not vary


def test_what_is_staler_than_the_last_bucket_is_in_it() -> None:
    assert worth(num_buckets=1).critic.by_staleness == pytest.approx([worth().critic.token])


def test_undefined_is_none() -> None:
    constant = worth(returns=np.full(len(RETURNS), 0.1, np.float32))
    assert constant.critic.token is None and constant.prompt_mean.within_prompt is None
    assert constant.prompt_mean.by_position == [None] * 10
    alone = critic_worth(VALUES, RETURNS, CU, list("abcdef"), STALENESS, 2)
    assert alone.num_responses == 0
    assert (alone.critic.token, alone.prompt_mean.sequence, alone.critic.by_staleness) == (None, None, [None] * 2)
    none = critic_worth(np.zeros(0), np.zeros(0), np.zeros(1, np.int64), [], np.zeros(0, np.int64), 1)
    assert none.critic.token is None and none.num_responses == 0


def test_the_order_of_responses_does_not_matter() -> None:
    order = [4, 0, 5, 2, 1, 3]
    pieces = [slice(CU[i], CU[i + 1]) for i in order]
    cu = np.concatenate([[0], np.cumsum(LENGTHS[order])])
    found = critic_worth(
        np.concatenate([VALUES[p] for p in pieces]),
        np.concatenate([RETURNS[p] for p in pieces]),
        cu,
        [GROUPS[i] for i in order],
        STALENESS[order],
        3,
    )
    assert found.critic.by_position == pytest.approx(worth().critic.by_position)
    assert found.prompt_mean.token == pytest.approx(worth().prompt_mean.token)


def test_a_batch_of_half_a_million_actions_takes_no_minutes() -> None:
    """A step on so many tokens takes minutes; this is well under a second of it on a machine that does nothing else."""
    responses, length = 128, 4096
    returns = np.repeat(rng.choice([-1.0, 1.0], responses), length)
    groups = [f"p{i // 8}" for i in range(responses)]
    cu = np.arange(0, responses * length + 1, length)
    began = time.process_time()
    critic_worth(returns * 0.3, returns, cu, groups, np.zeros(responses, np.int64), 2)
    assert time.process_time() - began < 10

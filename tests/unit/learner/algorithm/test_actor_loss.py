"""The actor's loss against its equations in Python floats, its gradient against autograd and finite differences."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vcppo.common.config import AlgorithmConfig
from vcppo.learner.algorithm.actor_loss import Denominators, actor_loss
from vcppo.learner.algorithm.aggregation import loss_denominator, loss_weights

LENGTHS = (3, 1, 4, 2)  # of four responses
CU = np.cumsum([0, *LENGTHS]).astype(np.int64)
FIXED = 6


class Data(NamedTuple):
    old_log_probs: Tensor
    reference_log_probs: Tensor | None
    advantages: Tensor
    importance_weights: Tensor
    mask: Tensor
    loss_weights: Tensor
    positive: Tensor


def sample(seed: int, aggregation: str = "token", *, per_sequence: bool = False) -> tuple[Tensor, Tensor, Data]:
    """Log-probs, entropy and data of four responses in float64; the third has a masked token, the second is masked."""
    rng = np.random.default_rng(seed)
    num = int(CU[-1])
    mask = np.ones(num, bool)
    mask[[CU[1], CU[2] + 1]] = False
    advantages = rng.normal(size=num)
    if per_sequence:
        advantages = np.repeat(rng.normal(size=4), LENGTHS)
    log_probs = -rng.uniform(0.5, 2, num)
    data = Data(
        old_log_probs=torch.from_numpy(log_probs + rng.normal(0, 0.5, num)),
        reference_log_probs=torch.from_numpy(log_probs + rng.normal(0, 0.5, num)),
        advantages=torch.from_numpy(advantages),
        importance_weights=torch.from_numpy(rng.uniform(0.3, 2, num)),
        mask=torch.from_numpy(mask),
        loss_weights=torch.from_numpy(loss_weights(mask, CU, aggregation)),
        positive=torch.from_numpy(mask & np.repeat([True, False, False, True], LENGTHS)),
    )
    entropy = torch.from_numpy(rng.uniform(0, 2, num))
    return torch.from_numpy(log_probs).requires_grad_(), entropy.requires_grad_(), data


def denominators(data: Data, algorithm: AlgorithmConfig) -> Denominators:
    policy = loss_denominator(data.mask.numpy(), CU, range(4), algorithm.aggregation, FIXED)
    return Denominators(policy, int(data.positive.sum()))


def loss_of(log_probs: Tensor, entropy: Tensor, data: Data, algorithm: AlgorithmConfig) -> Tensor:
    cu = torch.from_numpy(CU)
    weight = algorithm.entropy_coefficient
    return actor_loss(log_probs, entropy, data, algorithm, denominators(data, algorithm), cu, weight).value


def literal(log_probs: Tensor, entropy: Tensor, data: Data, algorithm: AlgorithmConfig) -> float:
    """Sums over responses and tokens, as the papers write them."""
    low, high = 1 - algorithm.clip_low, 1 + algorithm.clip_high
    per_response, nll = [], []
    for s in range(4):
        kept = [t for t in range(CU[s], CU[s + 1]) if data.mask[t]]
        ratio = {t: math.exp(log_probs[t].item() - data.old_log_probs[t].item()) for t in kept}
        if algorithm.objective == "gspo":
            ratio = dict.fromkeys(kept, math.prod(ratio.values()) ** (1 / max(1, len(kept))))
        terms = []
        for t in kept:
            a, rho, p = data.advantages[t].item(), ratio[t], log_probs[t].item()
            within = min(max(rho, low), high)
            if algorithm.objective == "dis":
                gain = rho * a * p if low <= rho <= high else 0.0
            else:
                gain = within * a * p if algorithm.objective == "cispo" else min(rho * a, within * a)
            if algorithm.dual_clip and a < 0:
                gain = max(gain, algorithm.dual_clip * a)
            d = data.reference_log_probs[t].item() - p
            kl = {"k1": -d, "k2": d * d / 2, "k3": math.exp(d) - d - 1}[algorithm.kl_estimator]
            bonus = algorithm.entropy_coefficient * entropy[t].item()
            terms.append(-data.importance_weights[t].item() * gain + algorithm.kl_coefficient * kl - bonus)
            if data.positive[t]:
                nll.append(-p)
        per_response.append(terms)
    of_positive = algorithm.positive_nll_coefficient * math.fsum(nll) / len(nll)
    if algorithm.aggregation == "token":
        every = [term for terms in per_response for term in terms]
        return math.fsum(every) / len(every) + of_positive
    if algorithm.aggregation == "sequence":
        means = [math.fsum(terms) / len(terms) for terms in per_response if terms]
        return math.fsum(means) / len(means) + of_positive
    return math.fsum(math.fsum(terms) for terms in per_response) / (4 * FIXED) + of_positive


@pytest.mark.parametrize("objective", ["ppo", "gspo", "cispo", "dis"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed_length"])
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    estimator=st.sampled_from(["k1", "k2", "k3"]),
    coefficients=st.tuples(*[st.sampled_from([0.0, 0.3])] * 3),
    dual=st.sampled_from([None, 1.3]),
)
def test_the_loss_is_the_papers_sum(objective, aggregation, seed, estimator, coefficients, dual):
    kl, bonus, nll = coefficients
    algorithm = AlgorithmConfig(
        objective=objective, aggregation=aggregation, kl_estimator=estimator, kl_coefficient=kl,
        entropy_coefficient=bonus, positive_nll_coefficient=nll,
        dual_clip=dual if objective in ("ppo", "gspo") else None,
    )  # fmt: skip
    given_data = sample(seed, aggregation)
    assert loss_of(*given_data, algorithm).item() == pytest.approx(literal(*given_data, algorithm), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed_length"])
def test_gradients_are_those_of_finite_differences(aggregation: str, estimator: str) -> None:
    log_probs, entropy, data = sample(3, aggregation)
    algorithm = AlgorithmConfig(
        aggregation=aggregation, kl_estimator=estimator, kl_coefficient=0.2, entropy_coefficient=0.1,
        positive_nll_coefficient=0.1, dual_clip=1.3,
    )  # fmt: skip
    assert torch.autograd.gradcheck(lambda p, h: loss_of(p, h, data, algorithm), (log_probs, entropy))


def test_gspo_has_the_gradient_of_its_sequence_ratio() -> None:
    """With one advantage a response: of min(s_i A_i, clip(s_i) A_i), all of it differentiated."""
    algorithm = AlgorithmConfig(objective="gspo", aggregation="sequence", clip_low=0.1, clip_high=0.1)
    log_probs, entropy, data = sample(5, "sequence", per_sequence=True)
    data = data._replace(reference_log_probs=None, importance_weights=torch.ones_like(data.advantages))
    (got,) = torch.autograd.grad(loss_of(log_probs, entropy, data, algorithm), log_probs)
    terms = []
    for s in range(4):
        kept = [t for t in range(CU[s], CU[s + 1]) if data.mask[t]]
        if kept:
            ratio = (log_probs[kept] - data.old_log_probs[kept]).mean().exp()
            a = data.advantages[kept[0]]
            terms.append(torch.minimum(ratio * a, ratio.clamp(0.9, 1.1) * a))
    (want,) = torch.autograd.grad(-torch.stack(terms).mean(), log_probs)
    assert want.any()
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)


def test_cispo_trains_what_is_clipped_too() -> None:
    algorithm = AlgorithmConfig(objective="cispo", clip_low=0.01, clip_high=0.01)
    log_probs, entropy, data = sample(7)
    data = data._replace(reference_log_probs=None)
    (got,) = torch.autograd.grad(loss_of(log_probs, entropy, data, algorithm), log_probs)
    within = (log_probs - data.old_log_probs).detach().exp().clamp(0.99, 1.01)
    want = -within * data.advantages * data.importance_weights * data.mask / int(data.mask.sum())
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    assert (got != 0).tolist() == data.mask.tolist()


def test_dis_leaves_out_what_is_outside_its_band_whatever_the_advantage() -> None:
    """PPO's clip keeps a token whose ratio is too high where it is to become rarer: that is what the band is for."""
    algorithm = AlgorithmConfig(objective="dis", old_log_probs="behaviour", clip_low=0.2, clip_high=0.3)
    log_probs, entropy, data = sample(7)
    data = data._replace(reference_log_probs=None, importance_weights=torch.ones_like(data.advantages))
    (got,) = torch.autograd.grad(loss_of(log_probs, entropy, data, algorithm), log_probs)
    ratio = (log_probs - data.old_log_probs).detach().exp()
    kept = (ratio > 0.8) & (ratio < 1.3) & data.mask
    want = -ratio * data.advantages * kept / int(data.mask.sum())
    torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-9)
    lost = data.mask & ~kept
    assert kept.any() and (lost & (data.advantages > 0)).any() and (lost & (data.advantages < 0)).any()


@pytest.mark.parametrize("objective", ["ppo", "gspo", "cispo", "dis"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed_length"])
def test_packing_does_not_change_the_objective(objective: str, aggregation: str) -> None:
    """Whole responses in other packs, and a dummy without any, add up to the same gradient."""
    algorithm = AlgorithmConfig(
        objective=objective, aggregation=aggregation, kl_coefficient=0.1, entropy_coefficient=0.1,
        positive_nll_coefficient=0.1,
    )  # fmt: skip
    log_probs, entropy, data = sample(11, aggregation)
    whole = torch.autograd.grad(loss_of(log_probs, entropy, data, algorithm), (log_probs, entropy))
    total = [torch.zeros_like(log_probs), torch.zeros_like(entropy)]
    for members in ([2], [], [3, 0, 1]):
        at = torch.tensor([t for s in members for t in range(CU[s], CU[s + 1])], dtype=torch.int64)
        part = Data(*(column[at] for column in data))
        cu = torch.tensor([0, *np.cumsum([LENGTHS[s] for s in members])], dtype=torch.int64)
        of = denominators(data, algorithm)
        loss = actor_loss(log_probs[at], entropy[at], part, algorithm, of, cu, algorithm.entropy_coefficient).value
        for sum_, grad in zip(total, torch.autograd.grad(loss, (log_probs, entropy)), strict=True):
            sum_ += grad
    for got, want in zip(total, whole, strict=True):
        torch.testing.assert_close(got, want)


def test_dual_clip_bounds_what_a_bad_token_costs() -> None:
    log_probs, entropy, data = sample(0)
    data = data._replace(
        old_log_probs=log_probs.detach() - 4.0,  # a ratio of 55
        advantages=-torch.ones_like(data.advantages),
        importance_weights=torch.ones_like(data.advantages),
        reference_log_probs=None,
    )
    plain, bounded = AlgorithmConfig(), AlgorithmConfig(dual_clip=3.0)
    assert loss_of(log_probs, entropy, data, plain).item() == pytest.approx(math.exp(4))
    loss = loss_of(log_probs, entropy, data, bounded)
    assert loss.item() == pytest.approx(3.0)
    assert not torch.autograd.grad(loss, log_probs)[0].any()


def test_gspo_without_borders_is_refused() -> None:
    from vcppo.learner.algorithm.losses import policy_loss

    one = torch.zeros(1)
    with pytest.raises(ValueError, match="objective=gspo needs action_cu_seqlens"):
        policy_loss(one, one, one, num_tokens=1, clip_low=0.2, clip_high=0.2, objective="gspo")

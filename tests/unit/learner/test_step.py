"""One packed, chunked, micro-batched learner step has the gradients of Algorithm 1 written down plainly.

The reference shares nothing with the learner: Hugging Face models with full logits and their own attention, one
unpadded sequence at a time, Python loops, the oracle's GAE. lambda_actor is 0.95, because 1 hides masking bugs.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, Qwen2ForSequenceClassification

from tests.unit.rig import oracle
from tests.unit.rig.learner_samples import mixed_batch, save_tiny_policy, tiny_config
from vcppo.common.config import AlgorithmConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.algorithm.actor_loss import Denominators, actor_loss
from vcppo.learner.algorithm.advantages import Truncation, place_ends, whiten
from vcppo.learner.algorithm.aggregation import loss_denominator
from vcppo.learner.algorithm.gae import decoupled_gae
from vcppo.learner.algorithm.losses import policy_loss, value_loss
from vcppo.learner.algorithm.off_policy import importance_weights, log_ratios
from vcppo.learner.batching.batch import Batch, Packer, Share, num_trained
from vcppo.learner.batching.packing import action_cu_seqlens, action_slots, build_packed, plan_micro_batches
from vcppo.learner.models.models import load_critic, load_policy
from vcppo.learner.rl.estimates import estimate

LAMBDA_ACTOR, LAMBDA_CRITIC = 0.95, 1.0
CLIP_LOW, CLIP_HIGH, IMPORTANCE, TEMPERATURE = 0.2, 0.28, 1.5, 0.8


def save_tiny_critic(folder: Path) -> Path:
    torch.manual_seed(7)
    Qwen2ForSequenceClassification(tiny_config(num_labels=1, pad_token_id=0)).float().save_pretrained(str(folder))
    return folder


# --- the reference ---------------------------------------------------------------------------------------------------


def plain_sequence(trajectory: Trajectory) -> tuple[Tensor, list[int]]:
    """``[1, T]`` token ids, and the positions of its actions."""
    tokens = [*trajectory.prompt_token_ids.tolist(), *trajectory.response_token_ids.tolist()]
    first = len(trajectory.prompt_token_ids)
    return torch.tensor([tokens]), [first + i for i, chosen in enumerate(trajectory.action_mask) if chosen]


def plain_log_probs(model: nn.Module, trajectory: Trajectory) -> list[Tensor]:
    tokens, actions = plain_sequence(trajectory)
    logits = model(input_ids=tokens).logits[0] / TEMPERATURE
    return [torch.log_softmax(logits[i - 1], dim=0)[tokens[0, i]] for i in actions]


def plain_values(model: nn.Module, trajectory: Trajectory) -> tuple[list[Tensor], Tensor]:
    """V before each action, and V at the last token."""
    tokens, actions = plain_sequence(trajectory)
    values = model.score(model.model(input_ids=tokens).last_hidden_state[0])[:, 0]
    return [values[i - 1] for i in actions], values[-1]


def plain_gradients(policy, critic, batch, old, truncation: Truncation):
    """Algorithm 1's two losses over the whole mini-batch, then backward. `old[i]` are old log-probs of sequence i."""
    advantages, targets, trained = [], [], []
    for t in batch:
        with torch.no_grad():
            values, last = plain_values(critic, t)
        v, cut = [x.item() for x in values], t.finish_reason == "length"
        rewards = [0.0] * len(v)
        rewards[-1] = 0.0 if cut and truncation == "bootstrap" else t.reward
        final = last.item() if cut and truncation == "bootstrap" else 0.0
        advantages.append(oracle.gae(rewards, v, final, LAMBDA_ACTOR))
        targets.append(oracle.value_targets(rewards, v, final, LAMBDA_CRITIC))
        trained.append(not (cut and truncation == "mask"))
    kept = [a for row, keep in zip(advantages, trained, strict=True) if keep for a in row]
    mean = math.fsum(kept) / len(kept)
    std = math.sqrt(math.fsum((a - mean) ** 2 for a in kept) / len(kept))
    policy_sum, value_sum = torch.zeros(()), torch.zeros(())
    for i, t in enumerate(batch):
        if not trained[i]:
            continue
        log_probs, (values, _) = plain_log_probs(policy, t), plain_values(critic, t)
        behaviour = t.behaviour_log_probs[t.action_mask].tolist()
        for k, log_prob in enumerate(log_probs):
            ratio, advantage = torch.exp(log_prob - old[i][k]), (advantages[i][k] - mean) / std
            clipped = torch.clamp(ratio, 1 - CLIP_LOW, 1 + CLIP_HIGH)
            weight = min(math.exp(old[i][k] - behaviour[k]), IMPORTANCE)
            policy_sum = policy_sum - weight * torch.minimum(ratio * advantage, clipped * advantage)
            value_sum = value_sum + 0.5 * (values[k] - targets[i][k]) ** 2
    (policy_sum / len(kept) + value_sum / len(kept)).backward()
    return policy_sum.item() / len(kept), value_sum.item() / len(kept)


# --- the learner ------------------------------------------------------------------------------------------------------


def packed_gradients(
    policy, critic, batch, old_flat, truncation: Truncation, token_budget: int, num_ranks: int, *, engines: bool = False
):
    """The same step on the learner's own path; ranks are walked one after the other, their gradients summed.

    `policy` and `critic` are modules, or DeepSpeed's engines around them.
    """
    cu = action_cu_seqlens(batch)
    plan = plan_micro_batches([t.num_tokens for t in batch], token_budget, num_ranks)
    micro_batches = [build_packed(batch, group) for rank in plan for group in rank]
    values, last = np.full(cu[-1], np.nan, np.float32), np.full(len(batch), np.nan, np.float32)
    for packed in micro_batches:
        with torch.no_grad():
            out = critic.infer(packed) if engines else critic(packed)
        values[action_slots(packed, cu)] = out.values.numpy()
        last[list(packed.sequence_index)] = out.last_values.numpy()
    cut = np.array([t.finish_reason == "length" for t in batch])
    ends = place_ends(np.array([t.reward for t in batch]), last, cut, cu, truncation)
    both = decoupled_gae(
        ends.rewards,
        values,
        ends.bootstrap_values,
        cu,
        gamma=1.0,
        lambda_actor=LAMBDA_ACTOR,
        lambda_critic=LAMBDA_CRITIC,
    )
    advantages, num_tokens = whiten(both.advantages, ends.mask), int(ends.mask.sum())
    behaviour = np.concatenate([t.behaviour_log_probs[t.action_mask] for t in batch])
    weights = importance_weights(log_ratios(old_flat, behaviour, cu, "token"), IMPORTANCE)
    totals = np.zeros(2)
    for packed in micro_batches:
        at = action_slots(packed, cu)
        mask = torch.from_numpy(ends.mask[at])
        log_probs, _ = policy(packed, TEMPERATURE)
        actor = policy_loss(
            log_probs,
            torch.from_numpy(old_flat[at]),
            torch.from_numpy(advantages[at]),
            num_tokens=num_tokens,
            clip_low=CLIP_LOW,
            clip_high=CLIP_HIGH,
            mask=mask,
            importance_weights=torch.from_numpy(weights[at]),
        )
        targets = torch.from_numpy(both.value_targets[at])
        value = value_loss(critic(packed).values, targets, num_tokens=num_tokens, mask=mask)
        if engines:
            policy.accumulate(actor.value)
            critic.accumulate(value.value)
        else:
            (actor.value + value.value).backward()
        totals += [actor.value.item(), value.value.item()]
    return totals


def assert_same_gradients(ours: nn.Module, plain: nn.Module) -> None:
    expected = dict(plain.named_parameters())
    names = [name for name, _ in ours.named_parameters()]
    assert names == list(expected)
    for name, parameter in ours.named_parameters():
        want = expected[name].grad
        assert want.abs().max() > 0, f"{name}: the reference has no gradient, so this proves nothing"
        scale = want.abs().max().item()
        torch.testing.assert_close(
            parameter.grad, want, rtol=1e-3, atol=2e-5 * scale + 1e-7, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(
    ("tied", "truncation", "token_budget", "num_ranks"),
    [(True, "terminal", 40, 1), (False, "terminal", 64, 2), (True, "bootstrap", 1000, 1), (False, "mask", 40, 3)],
)
def test_packed_step_has_the_gradients_of_algorithm_1(
    tmp_path: Path, tied: bool, truncation: Truncation, token_budget: int, num_ranks: int
) -> None:
    policy_folder = save_tiny_policy(tmp_path / "policy", tied=tied)
    critic_folder = save_tiny_critic(tmp_path / "critic")
    batch = mixed_batch(seed=3, tool_text=0.3)
    assert not all(t.action_mask.all() for t in batch)

    plain_policy = AutoModelForCausalLM.from_pretrained(policy_folder, attn_implementation="eager").float()
    plain_critic = AutoModelForSequenceClassification.from_pretrained(
        critic_folder, attn_implementation="eager"
    ).float()
    rng = np.random.default_rng(0)
    with torch.no_grad():  # pi_old near pi, so that some ratios are clipped and some are not
        old = [[x.item() + rng.normal(0, 0.3) for x in plain_log_probs(plain_policy, t)] for t in batch]
    expected = plain_gradients(plain_policy, plain_critic, batch, old, truncation)

    policy = load_policy(policy_folder, chunk_tokens=4, chunk_vocab=12)
    critic = load_critic(policy_folder, init=str(critic_folder))
    old_flat = np.array([x for row in old for x in row], np.float32)
    got = packed_gradients(policy, critic, batch, old_flat, truncation, token_budget, num_ranks)

    assert got.tolist() == pytest.approx(list(expected), rel=1e-4)
    assert_same_gradients(policy.hf_model, plain_policy)
    assert_same_gradients(critic.hf_model, plain_critic)


def plain_menu_gradients(policy: nn.Module, batch: list[Trajectory], old, advantages, settings: AlgorithmConfig):
    """Dual clip, token band, entropy and positive likelihood, mean over responses of each one's mean."""
    low, high = 1 - settings.clip_low, 1 + settings.clip_high
    means, positive = [], []
    for i, t in enumerate(batch):
        tokens, actions = plain_sequence(t)
        log_softmax = torch.log_softmax(policy(input_ids=tokens).logits[0] / TEMPERATURE, dim=1)
        behaviour, terms = t.behaviour_log_probs[t.action_mask].tolist(), []
        for k, at in enumerate(actions):
            weight = math.exp(old[i][k] - behaviour[k])
            if not settings.rejection_low <= weight <= settings.rejection_high:
                continue
            row, a = log_softmax[at - 1], advantages[i][k]
            ratio = torch.exp(row[tokens[0, at]] - old[i][k])
            gain = torch.minimum(ratio * a, ratio.clamp(low, high) * a)
            gain = torch.clamp(gain, min=settings.dual_clip * a) if a < 0 else gain
            entropy = -(row.exp() * row).sum()
            terms.append(-min(weight, settings.importance_truncation) * gain - settings.entropy_coefficient * entropy)
            if t.outcome == "correct":
                positive.append(-row[tokens[0, at]])
        if terms:
            means.append(torch.stack(terms).mean())
    value = torch.stack(means).mean() + settings.positive_nll_coefficient * torch.stack(positive).mean()
    value.backward()
    return value.item()


@pytest.mark.parametrize(("token_budget", "num_ranks"), [(40, 2), (1000, 1)])
def test_packed_step_has_the_gradients_of_the_other_terms(tmp_path: Path, token_budget: int, num_ranks: int) -> None:
    """Of ``algorithm.`` settings that are off by default, through the estimates as the loop takes them."""
    folder = save_tiny_policy(tmp_path / "policy")
    trajectories = mixed_batch(seed=4, tool_text=0.3)
    plain_policy = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
    rng = np.random.default_rng(1)
    with torch.no_grad():
        old = [[x.item() + rng.normal(0, 0.3) for x in plain_log_probs(plain_policy, t)] for t in trajectories]
    old_flat = np.array([x for row in old for x in row], np.float32)
    batch = Batch(trajectories, version=max(t.oldest_version for t in trajectories))
    d = np.exp(old_flat - batch.behaviour_log_probs)
    settings = AlgorithmConfig(
        rejection="token", rejection_low=float(min(0.9, np.quantile(d, 0.2))),
        rejection_high=float(max(1.1, np.quantile(d, 0.8))), importance_truncation=IMPORTANCE, dual_clip=1.3,
        aggregation="sequence", entropy_coefficient=0.3, positive_nll_coefficient=0.2, whiten_advantages=False,
    )  # fmt: skip
    values = rng.normal(size=len(old_flat)).astype(np.float32)
    estimates = estimate(
        batch, values, np.zeros(len(batch), np.float32), old_flat, settings, lambda_actor=0.95, lambda_critic=1.0
    )
    cu = batch.action_cu_seqlens
    assert 0 < estimates.actor_mask.sum() < len(old_flat) and estimates.positive.any()
    rows = [estimates.advantages[cu[i] : cu[i + 1]].tolist() for i in range(len(batch))]
    expected = plain_menu_gradients(plain_policy, trajectories, old, rows, settings)

    policy, total = load_policy(folder, chunk_tokens=4, chunk_vocab=12), 0.0
    everyone = list(range(len(batch)))
    denominators = Denominators(
        loss_denominator(estimates.actor_mask, cu, everyone, "sequence", 1),
        num_trained(estimates.positive, cu, everyone),
    )
    for rank in range(num_ranks):
        for micro in Packer(batch, Share(rank, num_ranks, token_budget)).micro_batches(everyone):
            log_probs, entropy = policy(micro.packed, TEMPERATURE, True)
            part, borders = estimates.of(micro, torch.device("cpu")), micro.packed.action_cu_seqlens
            loss = actor_loss(log_probs, entropy, part, settings, denominators, borders, settings.entropy_coefficient)
            loss.value.backward()
            total += loss.value.item()
    assert total == pytest.approx(expected, rel=1e-4)
    assert_same_gradients(policy.hf_model, plain_policy)

"""The formulas once more, plainly, in float64 on the CPU: what the product's numbers are held against.

It shares nothing with the learner but transformers' own models, called with their own attention, one sequence at a time
and with full logits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vcppo.common.records.trajectory import Trajectory


def attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int], scale: float, window: int | None) -> Tensor:
    """``[N, Hq, D]`` of q ``[N, Hq, D]`` and k, v ``[N, Hkv, D]``: softmax over the segment's tokens up to its own."""
    outputs, group = [], q.shape[1] // k.shape[1]
    for qs, ks, vs in zip(*(torch.split(x, list(lengths)) for x in (q, k, v)), strict=True):
        position = torch.arange(len(qs))
        behind = position[:, None] - position[None, :]
        seen = (behind >= 0) & (behind < (window or len(qs)))
        keys, values = (x.repeat_interleave(group, dim=1) for x in (ks, vs))
        scores = torch.einsum("qhd,khd->hqk", qs, keys) * scale
        outputs.append(torch.einsum("hqk,khd->qhd", scores.masked_fill(~seen, -math.inf).softmax(-1), values))
    return torch.cat(outputs)


def log_probs(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies ``[A]`` of hidden ``[A, H]``, weight ``[V, H]`` and targets ``[A]``, by all logits."""
    logits = hidden @ weight.t()
    every = torch.log_softmax((logits if bias is None else logits + bias) / temperature, dim=1)
    return every.gather(1, targets[:, None])[:, 0], -(every.exp() * every).sum(1)


def gae(rewards: Sequence[float], values: Sequence[float], final: float, lam: float) -> list[float]:
    """The paper's eq. 4 with γ = 1, a sum for each token; `final`: V after the last one."""
    following = [*values, final][1:]
    deltas = [r + after - before for r, after, before in zip(rewards, following, values, strict=True)]
    return [math.fsum(lam**n * delta for n, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


@dataclass(frozen=True)
class Step:
    """One learner step, float64.

    Attributes:
        values, log_probs, advantages, value_targets: ``[A]``, sequence by sequence; advantages are whitened.
        actor_norm, critic_norm: of the gradients, before clipping.
        actor, critic: weights after it, by name.
    """

    values: Tensor
    log_probs: Tensor
    advantages: Tensor
    value_targets: Tensor
    actor_norm: float
    critic_norm: float
    actor: dict[str, Tensor]
    critic: dict[str, Tensor]


@dataclass(frozen=True)
class Rates:
    """What a step is computed with."""

    actor: float
    critic: float
    temperature: float
    lambda_actor: float
    lambda_critic: float
    beta2: float
    max_norm: float


def step(actor: Any, critic: Any, trajectories: Sequence[Trajectory], rates: Rates) -> Step:
    """Algorithm 1 on one batch, as one mini-batch, on float64 models, which it changes.

    Args:
        actor, critic: transformers' models; every token of a response is an action, and no response is cut off.
    """
    log_probs = [_log_probs(actor, each, rates.temperature) for each in trajectories]
    values = [_values(critic, each) for each in trajectories]
    advantages, targets = [], []
    for trajectory, found in zip(trajectories, values, strict=True):
        rewards = [0.0] * (len(found) - 1) + [float(trajectory.reward)]
        plain = found.tolist()
        advantages.append(gae(rewards, plain, 0.0, rates.lambda_actor))
        targets += [v + a for v, a in zip(plain, gae(rewards, plain, 0.0, rates.lambda_critic), strict=True)]
    raw = torch.tensor([a for each in advantages for a in each], dtype=torch.float64)
    whitened = (raw - raw.mean()) / raw.std(correction=0)
    flat_log_probs, flat_values = torch.cat(log_probs), torch.cat(values)
    wanted = torch.tensor(targets, dtype=torch.float64)
    # At the first update pi = pi_old, so nothing is clipped and the ratio's gradient is that of log pi.
    ratio = torch.exp(flat_log_probs - flat_log_probs.detach())
    actor_norm = _update(actor, -(ratio * whitened).mean(), rates.actor, rates)
    critic_norm = _update(critic, (0.5 * (flat_values - wanted) ** 2).mean(), rates.critic, rates)
    return Step(
        flat_values.detach(), flat_log_probs.detach(), whitened, wanted, actor_norm, critic_norm, _weights(actor),
        _weights(critic),
    )  # fmt: skip


def _tokens(trajectory: Trajectory) -> tuple[Tensor, int]:
    """``[1, T]``, and how many of them are the prompt's."""
    ids = [*trajectory.prompt_token_ids.tolist(), *trajectory.response_token_ids.tolist()]
    return torch.tensor([ids]), len(trajectory.prompt_token_ids)


def _log_probs(model: Any, trajectory: Trajectory, temperature: float) -> Tensor:
    ids, prompt = _tokens(trajectory)
    every = torch.log_softmax(model(input_ids=ids).logits[0, prompt - 1 : -1] / temperature, dim=-1)
    return every.gather(1, ids[0, prompt:, None])[:, 0]


def _values(model: Any, trajectory: Trajectory) -> Tensor:
    ids, prompt = _tokens(trajectory)
    found: Tensor = model.score(model.model(input_ids=ids).last_hidden_state[0, prompt - 1 : -1])[:, 0]
    return found


def _update(model: nn.Module, loss: Tensor, learning_rate: float, rates: Rates) -> float:
    """The norm of the gradients."""
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, rates.beta2), weight_decay=0.0)
    torch.autograd.backward(loss)
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), rates.max_norm))
    optimizer.step()
    return norm


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

"""Decoupled generalized advantage estimation (paper, section 3.3) over packed action tokens.

One backward pass gives both results, each with its own lambda (paper eq. 4 and 5; gamma added)::

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    A_t     = delta_t + gamma lambda_actor A_{t+1}                                     (A_T = 0)
    R_t     = r_t + gamma ((1 - lambda_critic) V(s_{t+1}) + lambda_critic R_{t+1})     (R_T = V(s_T))

R_t is V(s_t) plus the paper's critic advantage, written as a lambda-return on purpose: at
lambda_critic = 1 the value drops out of the formula, so the target is the sum of rewards to the last bit
instead of V + (R - V) with its rounding.

A *step* is an action: arrays hold action tokens only. Tool text between two actions is part of the state
and neither a step nor a discount.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class AdvantagesAndTargets(NamedTuple):
    """What `decoupled_gae` returns, both ``[A]`` float32."""

    advantages: Float32Array
    value_targets: Float32Array


@njit(cache=True, nogil=True, fastmath={"contract"}, boundscheck=False)
def _kernel(rewards, values, final_values, cu_seqlens, gamma, lambda_actor, lambda_critic, advantages, targets):  # type: ignore[no-untyped-def]
    """The loop. Carries are float64: a float32 carry would lose digits over thousands of tokens."""
    for s in range(final_values.shape[0]):
        next_value = np.float64(final_values[s])
        target = next_value
        advantage = 0.0
        actor_decay = gamma * lambda_actor[s]
        critic_decay = gamma * lambda_critic[s]
        critic_bootstrap = gamma * (1.0 - lambda_critic[s])
        for t in range(cu_seqlens[s + 1] - 1, cu_seqlens[s] - 1, -1):
            reward = np.float64(rewards[t])
            value = np.float64(values[t])
            advantage = (reward + gamma * next_value - value) + actor_decay * advantage
            target = (reward + critic_bootstrap * next_value) + critic_decay * target
            advantages[t] = advantage
            targets[t] = target
            next_value = value


def decoupled_gae(
    rewards: Float32Array,
    values: Float32Array,
    final_values: Float32Array,
    cu_seqlens: Int64Array,
    *,
    gamma: float,
    lambda_actor: float | NDArray[np.floating],
    lambda_critic: float | NDArray[np.floating],
) -> AdvantagesAndTargets:
    """Advantages with lambda_actor and value targets with lambda_critic, in one pass.

    Args:
        rewards: ``[A]`` float32, per action; outcome tasks have zeros but for the last action.
        values: ``[A]`` float32, V(s_t) of the state before each action.
        final_values: ``[S]`` float32, V(s_T): 0 after a true end, the critic's value to bootstrap.
        cu_seqlens: ``[S+1]`` int64, sequence s owns actions ``cu_seqlens[s]:cu_seqlens[s+1]``; may be empty.
        gamma: discount (paper: 1).
        lambda_actor, lambda_critic: one number, or ``[S]`` per sequence (length-adaptive lambda).

    Raises:
        ValueError: lengths don't agree, or a value that is not finite (a diverged critic).
    """
    num_actions, num_sequences = len(rewards), len(final_values)
    if len(values) != num_actions or len(cu_seqlens) != num_sequences + 1 or int(cu_seqlens[-1]) != num_actions:
        raise ValueError(
            f"decoupled_gae: {num_actions} rewards, {len(values)} values, {num_sequences} final_values and "
            f"cu_seqlens of {len(cu_seqlens)} ending at {int(cu_seqlens[-1])} don't belong together"
        )
    advantages = np.empty(num_actions, np.float32)
    targets = np.empty(num_actions, np.float32)
    _kernel(
        np.ascontiguousarray(rewards, np.float32),
        np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(final_values, np.float32),
        np.ascontiguousarray(cu_seqlens, np.int64),
        float(gamma),
        _per_sequence(lambda_actor, num_sequences),
        _per_sequence(lambda_critic, num_sequences),
        advantages,
        targets,
    )
    return AdvantagesAndTargets(advantages, targets)


def monte_carlo_returns(rewards: Float32Array, cu_seqlens: Int64Array, *, gamma: float = 1.0) -> Float32Array:
    """``[A]`` float32 discounted sums of rewards to the end: what explained variance is measured against."""
    zeros = np.zeros(len(rewards), np.float32)
    ends = np.zeros(len(cu_seqlens) - 1, np.float32)
    return decoupled_gae(
        rewards, zeros, ends, cu_seqlens, gamma=gamma, lambda_actor=1.0, lambda_critic=1.0
    ).value_targets


def _per_sequence(value: float | NDArray[np.floating], num_sequences: int) -> NDArray[np.float64]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float64), (num_sequences,)))

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

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from numba import njit
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class AdvantagesAndTargets(NamedTuple):
    """What `decoupled_gae` returns, both ``[A]`` float32."""

    advantages: Float32[Float32Array, "A"]
    value_targets: Float32[Float32Array, "A"]


@njit(cache=True, nogil=True, fastmath={"contract"}, boundscheck=False)
@no_type_check  # numba compiles the plain function: the tests' run-time check must not wrap it
def _kernel(rewards, values, bootstrap_values, cu_seqlens, gamma, lambda_actor, lambda_critic, advantages, targets):
    """The loop. Returns the first sequence that is not finite, -1: all are.

    Carries are float64: a float32 carry would lose digits over thousands of tokens. Two steps at a time,
    y_{t-1} = (x_{t-1} + c x_t) + c^2 y_{t+1}, because a step waits for nothing but the carry's one multiply-add.
    NaN and infinity stay in a carry whatever the decay (0 * inf is NaN): looking at its end is enough.
    """
    for s in range(bootstrap_values.shape[0]):
        begin, end = cu_seqlens[s], cu_seqlens[s + 1]
        reward, value, advantage, target = (
            rewards[begin:end],
            values[begin:end],
            advantages[begin:end],
            targets[begin:end],
        )
        next_value = np.float64(bootstrap_values[s])
        actor_carry, critic_carry = 0.0, next_value
        actor_decay, critic_decay = gamma * lambda_actor[s], gamma * lambda_critic[s]
        actor_decay_2, critic_decay_2 = actor_decay * actor_decay, critic_decay * critic_decay
        bootstrap = gamma * (1.0 - lambda_critic[s])
        t = end - begin - 1
        if t % 2 == 0:
            r, v = np.float64(reward[t]), np.float64(value[t])
            advantage[t] = actor_carry = r + gamma * next_value - v
            target[t] = critic_carry = (r + bootstrap * next_value) + critic_decay * critic_carry
            next_value = v
            t -= 1
        while t > 0:
            r, v, earlier_r, earlier_v = (
                np.float64(reward[t]),
                np.float64(value[t]),
                np.float64(reward[t - 1]),
                np.float64(value[t - 1]),
            )
            delta, earlier_delta = r + gamma * next_value - v, earlier_r + gamma * v - earlier_v
            step, earlier_step = r + bootstrap * next_value, earlier_r + bootstrap * v
            advantage[t] = delta + actor_decay * actor_carry
            target[t] = step + critic_decay * critic_carry
            actor_carry = (earlier_delta + actor_decay * delta) + actor_decay_2 * actor_carry
            critic_carry = (earlier_step + critic_decay * step) + critic_decay_2 * critic_carry
            advantage[t - 1] = actor_carry
            target[t - 1] = critic_carry
            next_value = earlier_v
            t -= 2
        if not (np.isfinite(actor_carry) and np.isfinite(critic_carry)):
            return s
    return -1


def decoupled_gae(
    rewards: Float32[Float32Array, "A"],
    values: Float32[Float32Array, "A"],
    bootstrap_values: Float32[Float32Array, "S"],
    cu_seqlens: Int64[Int64Array, "S+1"],
    *,
    gamma: float,
    lambda_actor: float | Float[NDArray[np.floating], "S"],
    lambda_critic: float | Float[NDArray[np.floating], "S"],
) -> AdvantagesAndTargets:
    """Advantages with lambda_actor and value targets with lambda_critic, in one pass.

    Args:
        rewards: ``[A]`` float32, per action; outcome tasks have zeros but for the last action.
        values: ``[A]`` float32, V(s_t) of the state before each action.
        bootstrap_values: ``[S]`` float32, V(s_T): 0 after a true end, the critic's value to bootstrap.
        cu_seqlens: ``[S+1]`` int64, sequence s owns actions ``cu_seqlens[s]:cu_seqlens[s+1]``; may be empty.
        gamma: discount (paper: 1).
        lambda_actor, lambda_critic: one number, or ``[S]`` per sequence (length-adaptive lambda).

    Raises:
        ValueError: lengths don't agree, or a value that is not finite (a diverged critic).
    """
    num_actions, num_sequences = len(rewards), len(bootstrap_values)
    if len(values) != num_actions or len(cu_seqlens) != num_sequences + 1 or int(cu_seqlens[-1]) != num_actions:
        raise ValueError(
            f"decoupled_gae: {num_actions} rewards, {len(values)} values, {num_sequences} bootstrap_values and "
            f"cu_seqlens of {len(cu_seqlens)} ending at {int(cu_seqlens[-1])} don't belong together"
        )
    advantages = np.empty(num_actions, np.float32)
    targets = np.empty(num_actions, np.float32)
    not_finite = _kernel(
        np.ascontiguousarray(rewards, np.float32),
        np.ascontiguousarray(values, np.float32),
        np.ascontiguousarray(bootstrap_values, np.float32),
        np.ascontiguousarray(cu_seqlens, np.int64),
        float(gamma),
        _per_sequence(lambda_actor, num_sequences),
        _per_sequence(lambda_critic, num_sequences),
        advantages,
        targets,
    )
    if not_finite >= 0:
        raise ValueError(f"decoupled_gae: sequence {not_finite} has a reward or value that is not finite")
    return AdvantagesAndTargets(advantages, targets)


def monte_carlo_returns(
    rewards: Float32[Float32Array, "A"], cu_seqlens: Int64[Int64Array, "S1"], *, gamma: float = 1.0
) -> Float32[Float32Array, "A"]:
    """``[A]`` float32 discounted sums of rewards to the end: what explained variance is measured against."""
    zeros = np.zeros(len(rewards), np.float32)
    ends = np.zeros(len(cu_seqlens) - 1, np.float32)
    return decoupled_gae(
        rewards, zeros, ends, cu_seqlens, gamma=gamma, lambda_actor=1.0, lambda_critic=1.0
    ).value_targets


def _per_sequence(
    value: float | Float[NDArray[np.floating], "S"], num_sequences: int
) -> Float64[NDArray[np.float64], "S"]:
    return np.ascontiguousarray(np.broadcast_to(np.asarray(value, np.float64), (num_sequences,)))

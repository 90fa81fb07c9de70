"""Generalized advantage estimation with a turn, or a segment of one, as one step. Numpy only.

A turn is a run of action tokens with no other text between them. With turns k = 0 ... K - 1 of one response, R_k the
sum of its tokens' rewards and V_k the critic's value before its first token::

    delta_k = R_k + V_{k+1} - V_k
    A_k     = delta_k + lambda_actor A_{k+1}                          V_K = V(s_T), A_K = 0
    G_k     = R_k + (1 - lambda_critic) V_{k+1} + lambda_critic G_{k+1}        G_K = V(s_T)

Every token of turn k has the advantage A_k. The value target of a token is G_k less the rewards of its turn that were
before it. So lambda counts turns and not tokens: credit reaches over a long turn as over a short one.

It is the upper level of VAGEN's Bi-Level GAE (arXiv 2510.16907), which asks V at the turn's last token, and whose lower
level spreads G_k over the tokens of the turn by GAE once more. With one turn a response, A_0 is the outcome less V_0;
with turns of one token this is GAE.

A segment is a piece of a turn, of so many cutpoints: tokens that the policy found unlikely, where a response may go one
way or another (SPO, arXiv 2505.23564). It takes a turn's place above. Its end comes after the token that decides it, so
it is a stopping time, and V where it begins stays an unbiased baseline for all its tokens.

Per-action arrays are flat ``[A]`` over the actions of S sequences; ``action_cu_seqlens [S+1]`` int64 says whose.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy.typing import NDArray

from vcppo.learner.algorithm.gae import AdvantagesAndTargets, decoupled_gae

Float32Array = NDArray[np.float32]
Int64Array = NDArray[np.int64]


class Turns(NamedTuple):
    """Borders of K turns, or segments.

    Attributes:
        actions: ``[K+1]`` turn k owns ``flat[actions[k]:actions[k+1]]``, one action at least.
        of_sequence: ``[S+1]`` sequence s owns the turns ``of_sequence[s]:of_sequence[s+1]``.
    """

    actions: Int64[Int64Array, "K1"]
    of_sequence: Int64[Int64Array, "S1"]


def find_turns(positions: Int64[Int64Array, "A"], action_cu_seqlens: Int64[Int64Array, "S1"]) -> Turns:
    """Turns by where actions stand.

    Args:
        positions: ``[A]`` the place of each action among the tokens of its sequence, rising.
    """
    begins = np.ones(len(positions), np.bool_)
    begins[1:] = np.diff(positions) != 1
    first = action_cu_seqlens[:-1]
    begins[first[first < len(positions)]] = True  # the sequence before may have ended one place earlier
    starts = np.flatnonzero(begins).astype(np.int64)
    of_sequence = np.searchsorted(starts, action_cu_seqlens).astype(np.int64)
    return Turns(np.append(starts, np.int64(len(positions))), of_sequence)


def cut_into_segments(
    turns: Turns, log_probs: Float32[Float32Array, "A"], *, num_cutpoints: int, probability: float
) -> Turns:
    """Borders of segments: each ends behind its `num_cutpoints`-th token of at most `probability`, or with its turn.

    Args:
        log_probs: ``[A]`` of the tokens when they were sampled.
    """
    is_cutpoint = log_probs.astype(np.float64) <= math.log(probability)
    before: Int64Array = np.cumsum(is_cutpoint) - is_cutpoint
    starts, lengths = turns.actions[:-1], np.diff(turns.actions)
    number: Int64Array = (before - np.repeat(before[starts], lengths)) // num_cutpoints  # of the segment in its turn
    begins = np.ones(len(log_probs), np.bool_)
    begins[1:] = np.diff(number) != 0
    begins[starts] = True
    found = np.flatnonzero(begins).astype(np.int64)
    of_sequence = np.searchsorted(found, turns.actions[turns.of_sequence]).astype(np.int64)
    return Turns(np.append(found, np.int64(len(log_probs))), of_sequence)


def turn_gae(
    rewards: Float32[Float32Array, "A"],
    values: Float32[Float32Array, "A"],
    bootstrap_values: Float32[Float32Array, "S"],
    turns: Turns,
    *,
    lambda_actor: float | Float[NDArray[np.floating], "S"],
    lambda_critic: float,
) -> AdvantagesAndTargets:
    """Advantages and value targets of each action, ``[A]``, undiscounted. Arguments as of `decoupled_gae`."""
    starts, lengths = turns.actions[:-1], np.diff(turns.actions)
    if not len(starts):
        return AdvantagesAndTargets(np.zeros(0, np.float32), np.zeros(0, np.float32))
    exact = rewards.astype(np.float64)
    per_turn = decoupled_gae(
        np.add.reduceat(exact, starts).astype(np.float32), values[starts], bootstrap_values, turns.of_sequence,
        gamma=1.0, lambda_actor=lambda_actor, lambda_critic=lambda_critic,
    )  # fmt: skip
    summed = np.concatenate([np.zeros(1), np.cumsum(exact)])
    earlier = summed[:-1] - np.repeat(summed[starts], lengths)  # of the turn's rewards, those before each action
    targets = np.repeat(per_turn.value_targets.astype(np.float64), lengths) - earlier
    return AdvantagesAndTargets(np.repeat(per_turn.advantages, lengths), targets.astype(np.float32))

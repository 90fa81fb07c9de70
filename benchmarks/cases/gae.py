"""Decoupled GAE, both lambdas in one pass over packed tokens: `decoupled_gae` as the learner calls it.

Against two things, in the same rounds:

- the least memory traffic there is: its inputs (rewards, values) read once and its outputs (advantages, targets)
  written once, as two numpy copies into arrays that exist already;
- the peers' way: [B, T] tensors and a loop over T from the end, run once per lambda.

Asserted: within 1e-6 of the recurrence in float64, and, at lambda_critic = 1, targets that are the outcome to the bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.rig.figures import Figure, at_least, at_most, seconds_text
from benchmarks.rig.harness import Settings, measure, ratios
from vcppo.learner.algorithm.advantages import place_ends
from vcppo.learner.algorithm.gae import AdvantagesAndTargets, decoupled_gae

LAMBDA_ACTOR, LAMBDA_CRITIC = 0.95, 1.0
MOST_ERROR = 1e-6


class Sample(NamedTuple):
    """S whole sequences of T actions each; arrays as the learner has them when it calls GAE."""

    rewards: NDArray[np.float32]  # [S * T], the outcome on each last action
    values: NDArray[np.float32]  # [S * T]
    bootstrap_values: NDArray[np.float32]  # [S]
    cu_seqlens: NDArray[np.int64]  # [S + 1]
    num_sequences: int


def run(settings: Settings) -> list[Figure]:
    num_sequences, length = 64, settings.size(16_384, 512)
    sample = make_sample(num_sequences, length)
    check(sample)
    shape = (num_sequences, length)
    rewards, values = (torch.from_numpy(array).reshape(shape) for array in (sample.rewards, sample.values))
    outputs = np.empty_like(sample.rewards), np.empty_like(sample.values)

    def copy() -> None:
        np.copyto(outputs[0], sample.rewards)
        np.copyto(outputs[1], sample.values)

    def loops() -> None:
        per_step_loop(rewards, values, LAMBDA_ACTOR)
        per_step_loop(rewards, values, LAMBDA_CRITIC)

    # The loop takes some thousand times as long: fewer rounds for it, each beside rounds of ours.
    near = measure({"ours": lambda: ours(sample), "copy": copy}, settings.rounds(60))
    far = measure({"ours": lambda: ours(sample), "loops": loops}, settings.rounds(5))
    what = f"GAE, packed, both λ, {num_sequences} × {length:,} tokens"
    return [
        Figure.of(
            what,
            "copying its inputs into its outputs",
            ratios(near["ours"], near["copy"]),
            goal=at_most(6),
            absolute=seconds_text(near["ours"].median),
            peak_mib=near["ours"].peak_mib,
            note=f"the copy: {seconds_text(near['copy'].median)}",
        ),
        Figure.of(
            what,
            "a per-step tensor loop, once per λ",
            ratios(far["loops"], far["ours"]),
            goal=at_least(400),
            absolute=seconds_text(far["ours"].median),
            note=f"the loops: {seconds_text(far['loops'].median)}",
        ),
    ]


def make_sample(num_sequences: int, length: int) -> Sample:
    rng = np.random.default_rng(0)
    cu_seqlens = np.arange(num_sequences + 1, dtype=np.int64) * length
    values = rng.normal(0.5, 0.3, num_sequences * length).astype(np.float32)
    outcomes = rng.integers(0, 2, num_sequences).astype(np.float32)
    none_cut = np.zeros(num_sequences, bool)
    ends = place_ends(outcomes, np.zeros(num_sequences, np.float32), none_cut, cu_seqlens, "terminal")
    return Sample(ends.rewards, values, ends.bootstrap_values, cu_seqlens, num_sequences)


def ours(sample: Sample) -> AdvantagesAndTargets:
    return decoupled_gae(
        sample.rewards,
        sample.values,
        sample.bootstrap_values,
        sample.cu_seqlens,
        gamma=1.0,
        lambda_actor=LAMBDA_ACTOR,
        lambda_critic=LAMBDA_CRITIC,
    )


def per_step_loop(rewards: torch.Tensor, values: torch.Tensor, lam: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and returns ``[B, T]``, a step of all sequences at a time: how most trainers do it."""
    carry = torch.zeros(len(rewards))
    next_values = torch.zeros(len(rewards))
    backwards = []
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + next_values - values[:, t]
        carry = delta + lam * carry
        next_values = values[:, t]
        backwards.append(carry)
    advantages = torch.stack(backwards[::-1], dim=1)
    return advantages, advantages + values


def check(sample: Sample) -> None:
    """Raises AssertionError when ours is off."""
    result = ours(sample)
    shape = (sample.num_sequences, -1)
    rewards, values = (array.astype(np.float64).reshape(shape) for array in (sample.rewards, sample.values))
    outcomes = np.broadcast_to(rewards[:, -1:], rewards.shape)
    for found, expected in (
        (result.advantages, _float64_advantages(rewards, values, LAMBDA_ACTOR)),
        (result.value_targets, _float64_advantages(rewards, values, LAMBDA_CRITIC) + values),
    ):
        error = np.abs(found.reshape(shape) - expected).max()
        assert error <= MOST_ERROR, f"GAE is {error:.1e} off the float64 recurrence, at most {MOST_ERROR:.0e}"
    assert (result.value_targets.reshape(shape) == outcomes).all(), "a target at lambda 1 is not exactly the outcome"


def _float64_advantages(rewards: NDArray[np.float64], values: NDArray[np.float64], lam: float) -> NDArray[np.float64]:
    """``[S, T]``, the paper's recurrence."""
    advantages = np.zeros_like(rewards)
    carry = next_values = np.zeros(len(rewards))
    for t in reversed(range(rewards.shape[1])):
        carry = rewards[:, t] + next_values - values[:, t] + lam * carry
        next_values = values[:, t]
        advantages[:, t] = carry
    return advantages

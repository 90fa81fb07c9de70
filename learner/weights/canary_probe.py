"""The learner's side of the canary: log-probs of fixed tokens under the weights that are being sent.

The tokens are prompts of the run's own task. They stay the same as long as the learner runs, so that the answers to
two updates can be compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Float32Array
from vcppo.learner.batching.demonstrations import as_trajectory
from vcppo.learner.batching.packing import build_packed
from vcppo.learner.models.models import PolicyOutput
from vcppo.learner.models.rounding import last_place, rounded_differently
from vcppo.learner.supply.prompts import PromptSource, PromptTooLong
from vcppo.learner.weights.canary import CanaryProbe

PROMPT_LENGTH = 1  # the first token has nothing before it to be predicted from
LONGEST = 128  # tokens of one sequence
MOST_SEQUENCES = 32
NUM_SAMPLED = 16  # tokens that go through the sampler, where the temperature is not 1


class Scorer(Protocol):
    """What computes log-probs: `engine.deepspeed_engine.TrainEngine`, or a policy without an optimizer."""

    @property
    def module(self) -> nn.Module:
        """The policy."""

    @property
    def device(self) -> torch.device:
        """Where the policy is and its inputs must be."""

    def infer(self, *args: Any) -> Any:
        """The module's forward, without gradients."""


def probe_tokens(source: PromptSource, config: VcppoConfig) -> list[list[int]]:
    """Prompts of the task, each cut to `LONGEST`, until ``broadcast.canary_tokens`` are scored. Local, rank 0's."""
    longest = min(LONGEST, config.generator.max_model_len - 1)
    found: list[list[int]] = []
    scored = 0
    for number in range(MOST_SEQUENCES):
        try:
            tokens = source.tokens_of("rl", number)[:longest]
        except PromptTooLong:  # whoever issues it says so
            continue
        if len(tokens) > PROMPT_LENGTH:
            found.append(tokens[: PROMPT_LENGTH + config.broadcast.canary_tokens - scored].tolist())
            scored += len(found[-1]) - PROMPT_LENGTH
        if scored >= config.broadcast.canary_tokens:
            break
    return found


def make_probe(actor: Scorer, sequences: Sequence[Sequence[int]], config: VcppoConfig) -> CanaryProbe | None:
    """Score the sequences with the present weights, and measure what rounding explains.

    Collective under ZeRO-3: every rank computes it. None when there is nothing to score.
    """
    if not sequences:
        return None
    arrays = [np.asarray(each, np.int32) for each in sequences]
    packed = build_packed([as_trajectory(each[:PROMPT_LENGTH], each[PROMPT_LENGTH:]) for each in arrays])
    packed = packed.to(actor.device)

    def score(temperature: float) -> Float32Array:
        output: PolicyOutput = actor.infer(packed, temperature)
        return output.log_probs.float().cpu().numpy()

    log_probs = score(1.0)
    with rounded_differently(actor.module, last_place((config.model.dtype, config.generator.dtype))):
        disturbed = score(1.0)
    sampled = np.zeros(0, np.float32)
    if config.sampling.temperature != 1.0:
        num_first = len(sequences[0]) - PROMPT_LENGTH
        sampled = score(config.sampling.temperature)[:num_first][-NUM_SAMPLED:]
    return CanaryProbe(
        np.concatenate(arrays),
        PROMPT_LENGTH,
        log_probs,
        float(np.mean(np.abs(disturbed.astype(np.float64) - log_probs))),
        np.asarray([len(each) for each in sequences], np.int32),
        sampled,
    )

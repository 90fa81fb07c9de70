"""Passes over a whole batch without gradients: values of a critic, log-probs of a policy, gathered from all ranks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from vcppo.common.records.trajectory import Float32Array
from vcppo.learner.batching.batch import Packer, gather_flat
from vcppo.learner.engine.deepspeed_engine import TrainEngine, sum_over_ranks
from vcppo.learner.models.models import PolicyModel


class OfActions(NamedTuple):
    """Of the policy's distribution at each action, ``[A]`` both: the action's log-prob, and the entropy, nats."""

    log_probs: Float32Array
    entropy: Float32Array


def compute_values(critic: TrainEngine | None, packer: Packer) -> tuple[Float32Array, Float32Array]:
    """``values [A]`` V(s_t) before each action, ``last_values [S]`` V at the last token; zeros without a critic."""
    num_actions = packer.batch.num_actions
    flat = np.zeros(num_actions + len(packer.batch), np.float64)
    if critic is not None:
        for packed, slots in packer.whole:
            output = critic.infer(packed.to(critic.device))
            flat[slots] = output.values.cpu().numpy()
            flat[num_actions + np.array(packed.sequence_index, np.int64)] = output.last_values.cpu().numpy()
        flat = gather_flat(flat, sum_over_ranks).astype(np.float64)
    return flat[:num_actions].astype(np.float32), flat[num_actions:].astype(np.float32)


def compute_log_probs(policy: TrainEngine | PolicyModel, packer: Packer, temperature: float) -> OfActions:
    """log pi(a_t | s_t) at the sampling temperature; the entropy comes from the same pass over the logits."""
    flat = np.zeros((2, packer.batch.num_actions), np.float64)
    for packed, slots in packer.whole:
        if isinstance(policy, TrainEngine):
            output = policy.infer(packed.to(policy.device), temperature)
        else:
            with torch.no_grad():
                output = policy(packed.to(next(policy.parameters()).device), temperature)
        flat[0, slots] = output.log_probs.cpu().numpy()
        flat[1, slots] = output.entropy.cpu().numpy()
    return OfActions(*gather_flat(flat, sum_over_ranks))

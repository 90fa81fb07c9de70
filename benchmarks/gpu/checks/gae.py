"""The way of values through GAE: from the device to numpy, advantages and targets there, and back to the device.

GAE itself is computed on the CPU on every machine (`vcppo.learner.algorithm.gae`); what a GPU adds is the two copies.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu import plain
from benchmarks.gpu.findings import Findings, Number, Place, distance
from benchmarks.rig.workload import log_normal_lengths, random_trajectories
from vcppo.common.config import AlgorithmConfig
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.rl.estimates import estimate

LAMBDA_ACTOR, LAMBDA_CRITIC = 0.95, 1.0
TOLERANCE = 1e-5


def run(place: Place) -> Findings:
    """Both λ over whole responses, and the micro-batches that come back."""
    lengths = log_normal_lengths(place.size(24, 6), mean=place.size(295, 30), longest=place.size(1220, 90))
    batch = Batch(random_trajectories(lengths, 100, 2), 0)
    torch.manual_seed(0)
    on_device = torch.randn(batch.num_actions, device=place.device)
    values = on_device.cpu().numpy()
    last, log_probs = np.zeros(len(batch), np.float32), batch.behaviour_log_probs
    estimates = estimate(
        batch, values, last, log_probs, AlgorithmConfig(), lambda_actor=LAMBDA_ACTOR, lambda_critic=LAMBDA_CRITIC
    )
    advantages, targets = _plain(batch, values)
    found = Findings(
        [
            Number("GAE: advantages", distance(torch.from_numpy(estimates.raw_advantages), advantages), TOLERANCE),
            Number("GAE: value targets", distance(torch.from_numpy(estimates.value_targets), targets), TOLERANCE),
        ]
    )
    back = torch.zeros(batch.num_actions, device=place.device)
    for micro in Packer(batch, Share(0, 1, max(lengths))).whole:
        part = estimates.of(micro, place.device)
        back[torch.from_numpy(micro.slots).to(place.device)] = part.value_targets
        assert part.advantages.device.type == place.device.type
    sent = torch.from_numpy(estimates.value_targets)
    found.numbers.append(
        Number("GAE: value targets in micro-batches", distance(back, sent), 0.0, against="what was sent")
    )
    return found


def _plain(batch: Batch, values: NDArray[np.float32]) -> tuple[torch.Tensor, torch.Tensor]:
    """Advantages and value targets ``[A]``, by the paper's sums."""
    advantages, targets, cu = [], [], batch.action_cu_seqlens
    for i, trajectory in enumerate(batch.trajectories):
        own = [float(v) for v in values[cu[i] : cu[i + 1]]]
        rewards = [0.0] * (len(own) - 1) + [float(trajectory.reward)]
        advantages += plain.gae(rewards, own, 0.0, LAMBDA_ACTOR)
        targets += [v + a for v, a in zip(own, plain.gae(rewards, own, 0.0, LAMBDA_CRITIC), strict=True)]
    return torch.tensor(advantages, dtype=torch.float64), torch.tensor(targets, dtype=torch.float64)

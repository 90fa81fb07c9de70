"""The learner's side of the canary: log-probs of a few tokens under the weights that are being sent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from common.config import VcppoConfig
from learner.batch import Batch
from learner.canary import CanaryProbe
from learner.engine import TrainEngine
from learner.packing import build_packed


def make_probe(actor: TrainEngine, batch: Batch, config: VcppoConfig) -> CanaryProbe:
    """Log-probs of the first ``broadcast.canary_tokens`` response tokens of the batch's first trajectory.

    Collective under ZeRO-3: every rank computes it. Tool tokens count here like any other: the question is only
    whether two engines hold the same weights.
    """
    trajectory = batch.trajectories[0]
    response = trajectory.response_token_ids[: config.broadcast.canary_tokens]
    probed = replace(trajectory, response_token_ids=response, action_mask=np.ones(len(response), np.bool_))
    packed = build_packed([probed]).to(actor.device)
    log_probs = actor.infer(packed, config.sampling.temperature).log_probs.cpu().numpy()
    tokens = np.concatenate([trajectory.prompt_token_ids, response]).astype(np.int32)
    return CanaryProbe(tokens, len(trajectory.prompt_token_ids), log_probs.astype(np.float32))

"""Token ids that no policy sampled, as trajectories: packing is the same for both."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vcppo.common.records.trajectory import Trajectory, VersionSpan


def as_trajectory(prompt: NDArray[np.int32], response: NDArray[np.int32]) -> Trajectory:
    """``prompt [P]`` and ``response [T]`` int32, every response token an action; what a policy would add is neutral."""
    return Trajectory(
        id="demonstration",
        prompt_id="demonstration",
        group_id="demonstration",
        sample_index=0,
        task="",
        prompt_token_ids=prompt,
        response_token_ids=response,
        action_mask=np.ones(len(response), np.bool_),
        behaviour_log_probs=np.zeros(len(response), np.float32),
        version_spans=(VersionSpan(0, len(response)),),
        finish_reason="stop",
        reward=0.0,
        outcome="correct",
        generator_id="",
        issue_version=0,
    )

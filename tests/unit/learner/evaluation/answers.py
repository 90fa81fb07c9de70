"""Answers to held-out prompts, made up."""

from __future__ import annotations

import numpy as np

from vcppo.common.records.ids import make_trajectory_id
from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan


def answer_to(prompt: Prompt, *, is_right: bool) -> Trajectory:
    """Three tokens, all of the version that the prompt was issued at."""
    return Trajectory(
        id=make_trajectory_id(prompt.id, "generator-0", "0"),
        prompt_id=prompt.id,
        group_id=prompt.group_id,
        sample_index=prompt.sample_index,
        task=prompt.task,
        prompt_token_ids=prompt.token_ids,
        response_token_ids=np.arange(3, dtype=np.int32),
        action_mask=np.ones(3, np.bool_),
        behaviour_log_probs=np.zeros(3, np.float32),
        version_spans=(VersionSpan(prompt.issue_version, 3),),
        finish_reason="stop",
        reward=1.0 if is_right else -1.0,
        outcome="correct" if is_right else "wrong",
        generator_id="generator-0",
        issue_version=prompt.issue_version,
    )

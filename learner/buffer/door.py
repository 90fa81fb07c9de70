"""What a run's config rules out is refused at the door. Pure.

`decode_trajectory` refuses what nobody could train on. This refuses what nobody in this run can have made: another
reward than the verdict gives, a response past the limit, a broken-off one, log-probs that no sampler draws. Trained, it
would cost a run more than the prompt that is rejected here and replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.records.wire import WireError

MIN_LOG_PROB = -110.0
"""Nats. Float32 has no positive number below e^-103.98, so a sampler that works in it draws no token below that."""


@dataclass(frozen=True)
class Door:
    """The bounds of one run.

    Attributes:
        reward_correct, reward_wrong: the only two rewards there are: of outcome ``correct``, and of every other.
        max_response_tokens: of one response.
    """

    reward_correct: float
    reward_wrong: float
    max_response_tokens: int

    @classmethod
    def of(cls, config: VcppoConfig) -> Door:
        """The bounds that this config sets."""
        task, sampling = config.task, config.sampling
        return cls(task.reward_correct, task.reward_wrong, sampling.max_response_tokens)

    def check(self, trajectory: Trajectory) -> None:
        """Let a valid trajectory pass.

        Raises:
            WireError: the run can't have made it; begins with the name of the field.
        """
        if trajectory.finish_reason == "abort":
            raise WireError("finish_reason: 'abort': a broken-off response is not trained")
        num_tokens = len(trajectory.response_token_ids)
        if num_tokens > self.max_response_tokens:
            raise WireError(
                f"response_token_ids: {num_tokens} tokens, sampling.max_response_tokens = {self.max_response_tokens}"
            )
        is_correct = trajectory.outcome == "correct"
        name, reward = ("correct", self.reward_correct) if is_correct else ("wrong", self.reward_wrong)
        if trajectory.reward != reward:
            raise WireError(
                f"reward: {trajectory.reward:g} for outcome {trajectory.outcome!r}, task.reward_{name} = {reward:g}"
            )
        least = float(np.minimum.reduce(trajectory.behaviour_log_probs))
        if least < MIN_LOG_PROB:
            raise WireError(f"behaviour_log_probs: {least:g}: nobody samples a token below {MIN_LOG_PROB:g} nats")

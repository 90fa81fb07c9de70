"""A rollout that is over and judged, of one turn or of several, and the trajectory that is sent of it. Pure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vcppo.common.environments.environment import ToolUse
from vcppo.common.environments.episode import Transcript
from vcppo.common.records.trajectory import Int32Array, Prompt, Segment, Trajectory
from vcppo.common.rewards.reward_parts import BASE
from vcppo.common.rewards.reward_rule import Score
from vcppo.generator.vllm_engine.engine import Rollout


class Finished(NamedTuple):
    """What is sent but for names.

    Attributes:
        timings: seconds by phase: ``generate``, and ``verify`` or ``environment``; and `tool_figures`.
        prompt_token_ids: ``[P]`` that the response stands behind; None: the prompt's own.
        segments: the rollout's other conversations.
    """

    transcript: Transcript
    score: Score
    timings: dict[str, float]
    prompt_token_ids: Int32Array | None = None
    segments: tuple[Segment, ...] = ()

    def trajectory(self, prompt: Prompt, trajectory_id: str, generator_id: str) -> Trajectory:
        """Of the prompt that was rolled out."""
        made, score = self.transcript, self.score
        return Trajectory(
            id=trajectory_id,
            prompt_id=prompt.id,
            group_id=prompt.group_id,
            sample_index=prompt.sample_index,
            task=prompt.task,
            prompt_token_ids=prompt.token_ids if self.prompt_token_ids is None else self.prompt_token_ids,
            response_token_ids=made.token_ids,
            action_mask=made.action_mask,
            behaviour_log_probs=made.log_probs,
            version_spans=made.version_spans,
            finish_reason=made.finish_reason,
            reward=score.reward,
            outcome=score.outcome,
            generator_id=generator_id,
            issue_version=prompt.issue_version,
            timings=self.timings,
            components=score.components,
            turn_rewards=made.turn_rewards if BASE in score.components else (),
            segments=self.segments,
        )


def tool_figures(use: ToolUse) -> dict[str, float]:
    """For the timings of a rollout: ``tools`` is seconds, the others are counts. Empty without a call."""
    if not use.calls:
        return {}
    return {"tools": use.seconds, "tool_calls": float(use.calls), "tool_errors": float(use.errors)}


def one_turn(rollout: Rollout) -> Transcript:
    """All of it is the policy's."""
    count = len(rollout.token_ids)
    return Transcript(
        rollout.token_ids, np.ones(count, np.bool_), rollout.log_probs, rollout.version_spans,
        (), rollout.finish_reason,
    )  # fmt: skip

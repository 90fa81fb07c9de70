"""What a run's config rules out is refused at the door. Pure.

`decode_trajectory` refuses what nobody could train on. This refuses what nobody in this run can have made: another
reward than verdict and settings give, a response past the limit, a broken-off one, log-probs that no sampler draws.
Trained, it would cost a run more than the prompt that is rejected here and replaced.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import Segment, Trajectory
from vcppo.common.records.wire import WireError
from vcppo.common.rewards.reward_rule import RewardRule

MIN_LOG_PROB = -110.0
"""Nats. Float32 has no positive number below e^-103.98, so a sampler that works in it draws no token below that."""


@dataclass(frozen=True)
class Door:
    """The bounds of one run.

    Attributes:
        rewards: how a reward is made of outcome, components and length; the buffer makes it again.
        max_response_tokens: of one response.
        max_staleness: policy versions that a token may be older than its prompt.
        benchmarks: names of ``eval.benchmarks``, whose rewards are by outcome alone.
    """

    rewards: RewardRule
    max_response_tokens: int
    max_staleness: int
    benchmarks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: VcppoConfig) -> Door:
        """The bounds that this config sets."""
        benchmarks = frozenset(each.name for each in config.eval.benchmarks)
        return cls(config.reward_rule, config.sampling.max_response_tokens, config.rl.max_staleness, benchmarks)

    def check(self, trajectory: Trajectory) -> None:
        """Let a valid trajectory pass.

        Raises:
            WireError: the run can't have made it; begins with the name of the field.
        """
        self._check_response(trajectory)
        oldest = trajectory.issue_version - self.max_staleness
        if trajectory.oldest_version < oldest:
            raise WireError(
                f"version_spans: a token of version {trajectory.oldest_version}, for a prompt issued at "
                f"{trajectory.issue_version}: rl.max_staleness = {self.max_staleness} allows {max(0, oldest)}"
            )

    def check_newest(self, trajectory: Trajectory, published: int | None) -> None:
        """Let a trajectory pass whose policy versions exist.

        Args:
            published: the newest version that all generators were sent; None: none yet. The next one may be on its
                way: generators go on with it before the learner says that it is out.

        Raises:
            WireError: names the version.
        """
        newest, most = trajectory.newest_version, self.newest(published)
        if max(newest, trajectory.issue_version) > most:
            field = "version_spans" if newest > most else "issue_version"
            raise WireError(
                f"{field}: version {max(newest, trajectory.issue_version)} does not exist yet: the newest is {most}"
            )

    @staticmethod
    def newest(published: int | None) -> int:
        """The newest policy version that anybody can have."""
        return 0 if published is None else published + 1

    def _check_response(self, trajectory: Trajectory) -> None:
        for number, each in enumerate(trajectory.conversations):
            self._check_conversation(each, f"segments[{number - 1}]." if number else "")
        rewards = self.rewards.by_outcome_alone() if trajectory.task in self.benchmarks else self.rewards
        try:
            rewards.check(
                trajectory.outcome, trajectory.reward, trajectory.components, trajectory.longest_response,
                trajectory.turn_rewards,
            )  # fmt: skip
        except ValueError as error:
            raise WireError(str(error)) from error

    def _check_conversation(self, of: Trajectory | Segment, where: str) -> None:
        """`where` stands before the names of its fields."""
        if of.finish_reason == "abort":
            raise WireError(f"{where}finish_reason: 'abort': a broken-off response is not trained")
        num_tokens, most = len(of.response_token_ids), self.max_response_tokens
        if num_tokens > most:
            raise WireError(f"{where}response_token_ids: {num_tokens} tokens, sampling.max_response_tokens = {most}")
        least = float(np.minimum.reduce(of.behaviour_log_probs))
        if least < MIN_LOG_PROB:
            raise WireError(
                f"{where}behaviour_log_probs: {least:g}: nobody samples a token below {MIN_LOG_PROB:g} nats"
            )

"""Samples of a step as a learner writes them, of made-up trajectories: for tests of what reads them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vcppo.common.config import AlgorithmConfig, MetricsConfig
from vcppo.common.records.trajectory import Trajectory
from vcppo.learner.batching.batch import Batch
from vcppo.learner.rl.estimates import estimate
from vcppo.learner.rl.samples import SampleWriter


class Words:
    """A tokenizer whose tokens are words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(self._words[number] for number in ids)


def write_step(
    folder: Path, step: int, trajectories: list[Trajectory], words: Sequence[str], *, has_critic: bool = True,
    has_entropy: bool = True, **settings: float,
) -> None:  # fmt: skip
    """Of a step whose critic believes 0.1 per token before an action, whose log-probs differ by 0.25, and whose
    entropy is 0.2 per token before an action."""
    made = Batch(trajectories, version=step - 1)
    values = np.concatenate([0.1 * np.flatnonzero(each.action_mask) for each in made.trajectories]).astype(np.float32)
    algorithm = AlgorithmConfig(whiten_advantages=False)
    entropy = 2 * values if has_entropy else None
    estimates = estimate(
        made, values, np.full(len(made), 0.5, np.float32), made.behaviour_log_probs + np.float32(0.25), algorithm,
        lambda_actor=0.95, lambda_critic=1.0, entropy=entropy,
    )  # fmt: skip
    SampleWriter(folder, MetricsConfig(**settings), Words(words)).write(step, made, estimates, has_critic=has_critic)

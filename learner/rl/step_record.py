"""What rank 0 writes down of a step, once, before anything that may fail (checkpoint, broadcast)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from vcppo.learner.batching.batch import Batch
from vcppo.learner.rl.estimates import Estimates
from vcppo.learner.rl.rank_zero import RankZero
from vcppo.learner.rl.step_metrics import step_metrics
from vcppo.learner.rl.update_stats import UpdateStats

log = structlog.get_logger(__name__)

_SHOWN = {
    "accuracy": "reward/accuracy",
    "responses": "reward/num_responses",
    "length": "length/mean",
    "explained_variance": "explained_variance/token",
    "entropy": "policy/entropy",
    "clip_fraction": "policy/clip_fraction",
    "staleness": "staleness/mean",
    "tokens_per_second": "tokens/per_second",
    "seconds": "time/step",
    "waited": "time/claim",
}


class StepRecord:
    """The trained log, the metrics' line, samples of responses, and the one log line a user reads per step."""

    def __init__(self, rank_zero: RankZero | None, *, has_critic: bool) -> None:
        self._rank_zero, self._has_critic = rank_zero, has_critic

    def write(
        self,
        version: int,
        batch: Batch,
        estimates: Estimates,
        stats: UpdateStats,
        seconds: Mapping[str, float],
        figures: Mapping[str, float | int | None],
    ) -> None:
        """Nothing to do on other ranks.

        Args:
            seconds: by phase, with ``step``, see `vcppo.learner.rl.phases`.
            figures: learning rates, and of the passes that the critic had before it met this batch.
        """
        rank_zero = self._rank_zero
        if rank_zero is None:
            return
        rank_zero.store.confirm()  # before each file: another learner may have taken our place
        values: dict[str, Any] = {}
        dynamic, drawn = rank_zero.collector.dynamic_sampling, rank_zero.drawn_problems
        if drawn is not None:
            left_out = [] if dynamic is None else dynamic.left_out(version)
            values |= drawn.record(version, batch.rollouts, left_out)
        rank_zero.trained_log.append(version, batch)
        ids = [trajectory.id for trajectory in batch.trajectories]
        log.debug("trajectories_trained", policy_version=version, trajectory_ids=ids)
        values |= step_metrics(batch, estimates, stats, seconds, has_critic=self._has_critic)
        values |= figures
        if dynamic is not None:
            values |= dynamic.figures(version, batch.rollouts)
        ledger = rank_zero.store.ledger()
        values |= {f"ledger/{state}": count for state, count in ledger.as_dict().items()}
        rank_zero.metrics.write(version, values)
        rank_zero.samples.write(version, batch, estimates, has_critic=self._has_critic)
        log.info("step", policy_version=version, **{name: _rounded(values.get(key)) for name, key in _SHOWN.items()})
        if not ledger.is_exact:
            log.error("ledger_not_exact", ledger=str(ledger))

    def write_nothing(self, version: int, batch: Batch) -> None:
        """Of a step with an empty batch: the trained log must not go on naming what an earlier try trained."""
        if self._rank_zero is not None:
            self._rank_zero.trained_log.append(version, batch)
            log.error("step_emptied", policy_version=version, reason="nothing of its batch could be used any more")


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value

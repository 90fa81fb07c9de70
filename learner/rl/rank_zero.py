"""What only rank 0 has, and how it tells the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vcppo.common.store.run_store import RunStore
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.learner.engine.deepspeed_engine import broadcast_object
from vcppo.learner.evaluation.evaluator import Evaluator
from vcppo.learner.rl.samples import SampleWriter
from vcppo.learner.rl.trained_log import TrainedLog
from vcppo.learner.supply.collect import BatchCollector, PromptIssuer
from vcppo.learner.supply.drawn_problems import DrawnProblems


@dataclass(frozen=True)
class RankZero:
    """The store, and what writes to the run folder."""

    store: RunStore
    issuer: PromptIssuer
    collector: BatchCollector
    metrics: MetricsWriter
    trained_log: TrainedLog
    samples: SampleWriter
    evaluator: Evaluator
    drawn_problems: DrawnProblems | None = None


def agree(rank_zero: RankZero | None, decide: Callable[[RankZero], Any]) -> Any:
    """Rank 0's plain value on every rank. A collective: every rank calls it."""
    return broadcast_object(decide(rank_zero) if rank_zero is not None else None)

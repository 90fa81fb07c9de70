"""Evaluations during training, as the loop sees them: begun when a version is out, finished before the next one is.

A version is pinned by waiting: its prompts come before all others, and no newer weights are sent until every answer is
there. Meanwhile the learner trains on what it has and generators work on the next batch, so that only what is left of
the evaluation after that costs time: ``eval/stall_seconds``. A snapshot in an engine of its own would need the memory
of another model.

Should every generator lose these weights while the learner already has the next ones, the evaluation is given up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.learner.engine.deepspeed_engine import TrainEngine, broadcast_object
from vcppo.learner.evaluation.evaluator import Evaluator
from vcppo.learner.evaluation.exports import Exports


class SendsWeights(Protocol):
    """What is needed of `vcppo.learner.rl.publish.Publisher`."""

    def publish(self, version: int) -> None:
        """Send the actor's weights as this version. Collective."""

    def out_of_sync(self, version: int) -> list[str]:
        """Generators that do not have it. Rank 0."""


class Evaluations:
    """All ranks: rank 0 issues, waits and writes, the others hear of it.

    Args:
        evaluator: rank 0's.
        pin: is told the best version whenever that changes, on rank 0: its checkpoint is to be kept.
    """

    def __init__(
        self,
        config: VcppoConfig,
        actor: TrainEngine,
        evaluator: Evaluator | None,
        publisher: SendsWeights,
        stop_requested: Callable[[], bool],
        pin: Callable[[int], None],
    ) -> None:
        self._config, self._evaluator, self._publisher = config, evaluator, publisher
        self._stop_requested, self._pin = stop_requested, pin
        self._exports = Exports(config, actor)
        self._pending: int | None = None
        self._keeps_best = config.eval.keeps_best_version
        if self._keeps_best and evaluator is not None and evaluator.best_version is not None:
            pin(evaluator.best_version)

    def is_due(self, version: int) -> bool:
        """Whether this version is to be evaluated, and is not yet. Collective."""
        return self._config.eval.is_during_training and bool(self._agree(lambda evaluator: evaluator.is_due(version)))

    def begin(self, version: int) -> None:
        """Generators run this version, and so does the actor: issue the prompts, copy the weights. Collective."""
        is_due = self._pending is None and self.is_due(version)
        if is_due:
            self._pending = version
            if self._evaluator is not None:
                self._evaluator.begin(version)
        if self._exports.is_regular(version) or (is_due and self._keeps_best):
            self._exports.begin(version)

    def finish(self, version: int) -> None:
        """Wait for what was begun; nothing to do when nothing was. Collective.

        Args:
            version: whose weights the actor has. Those of the evaluated version can't be sent any more when it is
                another one.

        Raises:
            DeadlineExceeded: see `Evaluator.poll`.
        """
        began = time.monotonic()
        while (pending := self._pending) is not None:
            watchdog.stage("evaluation", waiting_for=["answers"] if self._evaluator else ["learner rank 0"])
            found = self._agree(lambda evaluator: self._look(evaluator, pending, version))
            if found == "publish":
                self._publisher.publish(version)
            elif found != "wait":
                self._pending = None
                if self._evaluator is not None:
                    self._end(self._evaluator, pending, time.monotonic() - began, is_done=found == "done")

    def has_plateaued(self) -> bool:
        """Whether the run ends here (``eval.patience``). Collective."""
        return self._config.eval.patience > 0 and bool(self._agree(lambda evaluator: evaluator.has_plateaued))

    def export_result(self, folder: Path, version: int) -> None:
        """What the run hands out at its end: the best version, or the last, `version`. Collective."""
        best = self._agree(lambda evaluator: evaluator.best_version) if self._keeps_best else None
        self._exports.export_result(folder, best, version)

    def _agree(self, decide: Callable[[Evaluator], Any]) -> Any:
        return broadcast_object(decide(self._evaluator) if self._evaluator is not None else None)

    def _look(self, evaluator: Evaluator, pending: int, version: int) -> str:
        """Rank 0: what to do. Waits a moment."""
        if evaluator.poll() == "done":
            return "done"
        if self._stop_requested():
            evaluator.abandon(pending, "the run was asked to stop")
            return "abandoned"
        lagging = self._publisher.out_of_sync(pending)
        if lagging and version == pending:
            return "publish"
        if lagging and not evaluator.has_others_than(lagging):
            evaluator.abandon(pending, f"{', '.join(lagging)} lost its weights, and the learner has newer ones")
            return "abandoned"
        return "wait"

    def _end(self, evaluator: Evaluator, pending: int, stall_seconds: float, *, is_done: bool) -> None:
        keep = self._exports.keep_as_best if self._keeps_best else None
        if is_done and evaluator.conclude(pending, stall_seconds, keep) and self._keeps_best:
            self._pin(pending)
        if self._keeps_best:
            self._exports.drop(pending)

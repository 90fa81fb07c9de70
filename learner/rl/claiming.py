"""Which batch the loop trains next, and what it does while it waits for one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import structlog

from vcppo.common.process import watchdog
from vcppo.learner.batching.batch import Batch
from vcppo.learner.rl.progress import Progress
from vcppo.learner.rl.publish import Publisher
from vcppo.learner.rl.rank_zero import RankZero, agree

log = structlog.get_logger(__name__)

SYNC_CHECK_SECONDS = 2.0


class Claiming:
    """Rank 0 decides, all ranks learn. Generators that lag behind get the weights meanwhile."""

    def __init__(
        self,
        rank_zero: RankZero | None,
        publisher: Publisher,
        progress: Progress,
        stop_requested: Callable[[], bool],
    ) -> None:
        self._rank_zero = rank_zero
        self._publisher, self._progress = publisher, progress
        self._stop_requested = stop_requested
        self._next_sync_check = 0.0

    def issue(self, version: int) -> None:
        """Prompts, as many as there are credits at this version."""
        if self._rank_zero is not None:
            self._rank_zero.collector.issue(version)

    def next_batch(self, version: int) -> Batch | None:
        """Claimed for the step after ``version``; None: we are asked to stop."""
        while True:
            watchdog.stage("claim", waiting_for=["trajectories"] if self._rank_zero else ["learner rank 0"])
            decision = agree(self._rank_zero, lambda rank_zero: self._poll(rank_zero, version))
            match decision["do"]:
                case "stop":
                    return None
                case "train":
                    return Batch.decode(decision["payloads"], version)
                case "publish":
                    self._publisher.publish(version)
                case "commit":
                    self._progress.checkpoint_and_commit(version)

    def _poll(self, rank_zero: RankZero, version: int) -> dict[str, Any]:
        if self._stop_requested():
            return {"do": "stop"}
        ids = rank_zero.collector.poll(version)
        if ids is not None:
            payloads = rank_zero.collector.claim(ids, version + 1)
            return {"do": "wait"} if payloads is None else {"do": "train", "payloads": payloads}
        if time.monotonic() >= self._next_sync_check:
            self._next_sync_check = time.monotonic() + SYNC_CHECK_SECONDS
            if lagging := self._publisher.out_of_sync(version):
                log.info("generators_out_of_sync", generators=lagging, policy_version=version)
                return {"do": "publish"}
        if self._progress.has_uncommitted and rank_zero.issuer.is_held_back:  # a commit makes room
            return {"do": "commit"}
        return {"do": "wait"}

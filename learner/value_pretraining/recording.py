"""Recording the trajectories of value pretraining: each once, on disk before it is committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.records.ids import make_group_id, make_prompt_id, purpose_of
from vcppo.common.records.trajectory import Purpose, Trajectory
from vcppo.common.records.wire import decode_trajectory, encode_trajectory
from vcppo.common.store.run_store import RunStore
from vcppo.common.telemetry.metrics import MetricsWriter, Value
from vcppo.learner.batching.trajectory_file import TrajectoryFile
from vcppo.learner.engine.deepspeed_engine import broadcast_object, num_ranks
from vcppo.learner.supply.collect import POLL_SECONDS, PromptIssuer, WaitWatch, describe_wait
from vcppo.learner.supply.quarantine import Quarantine
from vcppo.learner.value_pretraining.recording_stats import Counts, count_responses

log = structlog.get_logger(__name__)

PURPOSE: Purpose = "value_pretraining"
CLAIM_STEP = 0  # RL steps count from 1
REPORT_EVERY = 64  # trajectories between progress lines


class Recorder:
    """Rank 0: issues prompts within bounds, writes what comes back, commits it."""

    def __init__(self, config: VcppoConfig, store: RunStore, issuer: PromptIssuer, file: TrajectoryFile) -> None:
        self._num_wanted = config.value_pretraining.num_trajectories
        # Enough to keep every generator busy; the store never holds more than this.
        self._max_open = max(2 * config.generator.max_in_flight * config.generator.num_generators, 1)
        self._store = store
        self._issuer = issuer
        self._file = file
        self._watch = WaitWatch("value_pretraining_trajectory", config.learner.batch_deadline_seconds)
        self._quarantine = Quarantine(config, store)
        self._finish_claims()
        issuer.not_before(_first_missing(file, config.rl.group_size))  # where the store is a new one

    @property
    def counts(self) -> Counts:
        """Of what is recorded so far."""
        return count_responses(self._file.trajectories)

    @property
    def is_complete(self) -> bool:
        """Whether as many responses are recorded as value pretraining wants."""
        return len(self._file) >= self._num_wanted

    def poll(self) -> int:
        """Issue, record what has arrived, or wait a moment for it. Returns how many are recorded."""
        outstanding = [entry for entry in self._store.outstanding() if purpose_of(entry.prompt_id) == PURPOSE]
        arrived = [entry.prompt_id for entry in outstanding if entry.state == "buffered"]
        if arrived:
            self._watch.reset()
            sound = self._quarantine.sound(arrived)
            if not self._store.take(list(sound), CLAIM_STEP):  # else one is gone meanwhile: look again
                self._record(sound)
        num_open = len(outstanding) - len(arrived)
        room = min(self._max_open - num_open, self._num_wanted - len(self._file) - num_open)
        self._issuer.issue(room, version=0)
        if not arrived and not self.is_complete:
            self._store.requeue_expired_leases()
            self._watch.check(lambda: describe_wait(self._store, outstanding, []))
            self._store.wait_for_append(POLL_SECONDS)
        return len(self._file)

    def _finish_claims(self) -> None:
        """A crash came between claim and commit: the file decides what is still to be written."""
        claimed = self._store.claimed().get(CLAIM_STEP, [])
        if claimed:
            self._record(self._quarantine.sound(claimed))

    def _record(self, claimed: Mapping[str, bytes]) -> None:
        self._file.append(claimed.values())
        self._store.commit(list(claimed))  # only now: they are on disk


class WeightSender(Protocol):
    """Brings generators to version 0 (`vcppo.learner.value_pretraining.frozen_policy.FrozenPolicy`)."""

    def is_wanted(self) -> bool:
        """A generator does not run version 0. Rank 0 only."""

    def send(self) -> None:
        """Collective."""

    def release(self) -> None:
        """Nothing is sent any more."""


def record(
    recorder: Recorder | None,
    metrics: MetricsWriter | None,
    stop_requested: Callable[[], bool],
    weights: WeightSender | None = None,
) -> bool:
    """All ranks: until everything is recorded (True) or a stop is asked for (False).

    Generators that join, or lost their weights, are sent version 0 meanwhile.
    """
    told = -1
    while True:
        watchdog.stage("record", waiting_for=["trajectories"] if recorder else ["learner rank 0"])
        state = "wait"
        if recorder is not None:
            num_recorded = recorder.poll()
            if recorder.is_complete or stop_requested():
                state = "done" if recorder.is_complete else "stop"
            elif weights is not None and weights.is_wanted():
                state = "send"
            due = num_recorded - told >= REPORT_EVERY or (state == "done" and num_recorded != told)
            if metrics is not None and due:
                told = num_recorded
                counts = recorder.counts
                values: dict[str, Value] = {"stage": "value_pretraining", "vp/recorded": num_recorded}
                metrics.write(num_recorded, values | counts.metrics())
                log.info("value_pretraining_recorded", num_trajectories=num_recorded, **counts.as_text())
        agreed: str = broadcast_object(state)
        if agreed == "send" and weights is not None:
            weights.send()
        elif agreed != "wait":
            return agreed == "done"


def _first_missing(file: TrajectoryFile, group_size: int) -> int:
    """Number of the first prompt that is not recorded."""
    recorded = {trajectory.prompt_id for trajectory in file.trajectories}
    names = (make_prompt_id(make_group_id(PURPOSE, i // group_size), i % group_size) for i in count())
    return next(index for index, name in enumerate(names) if name not in recorded)


def in_prompt_order(trajectories: Iterable[Trajectory]) -> list[Trajectory]:
    """What is trained does not depend on arrival."""
    return sorted(trajectories, key=lambda t: (t.group_id, t.sample_index))


def share_record(trajectories: Sequence[Trajectory] | None) -> list[Trajectory]:
    """Rank 0's trajectories on every rank, in prompt order. The others give None."""
    if trajectories is not None:
        ordered = in_prompt_order(trajectories)
        broadcast_object([encode_trajectory(t) for t in ordered] if num_ranks() > 1 else None)
        return ordered
    return [decode_trajectory(payload) for payload in broadcast_object()]

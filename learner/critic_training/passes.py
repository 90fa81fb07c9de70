"""The critic's own passes over a batch, beside the one that goes with the actor's updates. Every rank runs them.

    issue ─▶ weights to generators ─▶ passes of the critic ─▶ claim
                      │                  (this room)            ▲
                      └─ generators make the next batch ────────┘

So they cost wall time only where the next batch would have been there already. A critic with one pass a batch falls
behind a policy that moves: on the same batches four passes doubled its explained variance (docs/critic.md).

With ``critic.passes = auto`` some of the newest batch's prompts are held out, from the first pass too, and the passes
go on while explained variance on them rises, within `critic.max_passes` and `critic.max_seconds`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.records.seeds import derive_seed
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.batch import Batch, Packer, Share, num_trained
from vcppo.learner.batching.packing import split_mini_batches
from vcppo.learner.critic_quality.explained_variance import CRUMBS, explained_variance
from vcppo.learner.critic_training.lesson import Estimated, Lesson, Study, draw_held_out, joined
from vcppo.learner.critic_training.stopping import Stopping
from vcppo.learner.critic_training.update import critic_step
from vcppo.learner.engine.deepspeed_engine import TrainEngine, broadcast_object
from vcppo.learner.engine.forward import compute_values

log = structlog.get_logger(__name__)

FILE = "critic_study.safetensors"


class CriticPasses:
    """All ranks. `add` a batch when it is trained; `catch_up` before the next one is.

    Attributes:
        figures: metrics of the last passes; empty before there were any.
    """

    def __init__(self, config: VcppoConfig, critic: TrainEngine | None, share: Share) -> None:
        self._critic, self._share = critic, share
        self._settings, self._algorithm, self._seed = config.critic, config.algorithm, config.run.seed
        self._bins = ValueBins.of(config)
        self._is_automatic = self._settings.passes == "auto"
        self._stopping = Stopping(
            passes=None if self._is_automatic else int(self._settings.passes),
            max_passes=self._settings.max_passes,
            max_seconds=self._settings.max_seconds,
            min_rise=self._settings.min_rise,
            patience=self._settings.patience,
        )
        self._study = Study()
        self.figures: dict[str, float | int | None] = {}

    @property
    def is_on(self) -> bool:
        """Whether there can be a second pass over a batch."""
        return self._critic is not None and self._settings.passes != 1

    def held_out(self, batch: Batch) -> list[int]:
        """The sequences of `batch` that the critic must not be trained on while it is the newest."""
        if not (self.is_on and self._is_automatic):
            return []
        return draw_held_out(batch, self._settings.held_out_fraction, self._seed)

    def add(self, batch: Batch, estimates: Estimated) -> None:
        """The batch had its pass beside the actor's updates. What was held out of the one before is so no longer."""
        if not self.is_on:
            return
        before = [lesson.for_another_batch() for lesson in self._study.lessons]
        kept = [*before, Lesson.of(batch, estimates, self.held_out(batch))][-1 - self._settings.replay_batches :]
        self._study = Study(kept, num_passes=1)

    @property
    def are_due(self) -> bool:
        """Whether `catch_up` has anything to do."""
        return bool(self._study.lessons) and not self._study.is_done

    def catch_up(self, stop_requested: Callable[[], bool]) -> None:
        """Do the passes that are due. Ends between two of them when asked to stop; the same command goes on there."""
        if not self.are_due:
            return
        study, seconds, verdict = self._study, list[float](), ""
        if self._is_automatic and not study.measured:
            study.measured.append(self._measure(study.lessons[-1]))
        while not study.is_done:
            verdict = self._stopping.after(study.num_passes, study.measured, seconds)
            verdict, stop = broadcast_object((verdict, stop_requested()))  # rank 0's clock counts
            study.is_done = verdict != "go_on"
            if study.is_done or stop:
                break
            started = time.monotonic()
            self._one_pass(study)
            seconds.append(time.monotonic() - started)
        self._report(study, sum(seconds), verdict)

    def _report(self, study: Study, seconds: float, verdict: str) -> None:
        before, after = (study.measured[0], study.measured[-1]) if study.measured else (None, None)
        self.figures = {
            "critic/passes": study.num_passes,
            "critic/held_out_explained_variance_before": before,
            "critic/held_out_explained_variance_after": after,
        }
        if self._share.rank == 0:
            log.info("critic_passes_done", passes=study.num_passes, seconds=round(seconds, 2), ended_by=verdict,
                     explained_variance_before=before, explained_variance_after=after)  # fmt: skip

    def _one_pass(self, study: Study) -> None:
        """Over every lesson once, in mini-batches as large as those of the newest batch alone."""
        assert self._critic is not None
        lesson = joined(study.lessons)
        packer, batch = Packer(lesson.batch, self._share), lesson.batch
        number = self._settings.num_mini_batches or self._algorithm.num_mini_batches
        seed = derive_seed(self._seed, "critic_passes", study.lessons[-1].batch.version, study.num_passes)
        for members in split_mini_batches(len(batch), number * len(study.lessons), seed):
            watchdog.stage("critic_passes")
            num_tokens = num_trained(lesson.mask, batch.action_cu_seqlens, members)
            critic_step(
                self._critic, packer.micro_batches(members), lesson.value_targets, lesson.mask, num_tokens=num_tokens,
                bins=self._bins, old_values=lesson.values, value_clip=self._algorithm.value_clip,
            )  # fmt: skip
        study.num_passes += 1
        if self._is_automatic:
            study.measured.append(self._measure(study.lessons[-1]))

    def _measure(self, lesson: Lesson) -> float | None:
        """Explained variance on what is held out of the newest batch; None: its returns are all the same.

        Where only the held-out returns are, their error is held against the variance of all the batch's.
        """
        batch, cu = lesson.batch, lesson.batch.action_cu_seqlens
        part = Batch([batch.trajectories[i] for i in lesson.held_out], batch.version)
        values, _ = compute_values(self._critic, Packer(part, self._share))
        returns = np.concatenate([lesson.returns[cu[i] : cu[i + 1]] for i in lesson.held_out])
        measured = explained_variance(values, returns, part.action_cu_seqlens, part.group_ids).token
        variance = float(np.var(lesson.returns, dtype=np.float64))
        if measured is None and variance > CRUMBS * float(np.square(lesson.returns, dtype=np.float64).mean()):
            return 1.0 - float(np.square(returns - values, dtype=np.float64).mean()) / variance
        return measured

    def save(self, folder: Path) -> None:
        """Rank 0: into a checkpoint's folder."""
        if self.is_on:
            self._study.save(folder / FILE)

    def load(self, folder: Path) -> None:
        """From a checkpoint's folder: passes that were due then are done before the next batch."""
        if self.is_on:
            self._study = Study.load(folder / FILE)

"""What of a run survives: checkpoints, and the commits that follow them. How a crash is made good: `rl.resume`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.run_folder import RunFolder
from vcppo.learner.algorithm.entropy_target import EntropyWeight
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.critic_training.passes import CriticPasses
from vcppo.learner.engine.checkpoint import CheckpointState, CheckpointStore, folder_name, load_rng, save_rng
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.engine.reference import Reference
from vcppo.learner.engine.together import write_together
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.rank_zero import RankZero, agree
from vcppo.learner.rl.resume import (
    commit,
    config_hash,
    newest_checkpoint,
    plan_replay,
    sound_claims,
    write_settings,
)

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Kept:
    """What of a run a checkpoint has beside weights, optimizers and generator states. All ranks."""

    critic_passes: CriticPasses
    entropy_weight: EntropyWeight
    reference: Reference | None

    def numbers(self) -> dict[str, float]:
        """For the checkpoint's state."""
        return self.entropy_weight.numbers() | (self.reference.numbers() if self.reference is not None else {})

    def save(self, staging: Path) -> None:
        """Rank 0: into a checkpoint's folder."""
        self.critic_passes.save(staging)
        if self.reference is not None:
            self.reference.save(staging)

    def load(self, folder: Path, numbers: Mapping[str, float]) -> None:
        """What `save` and `numbers` had."""
        self.critic_passes.load(folder)
        self.entropy_weight.restore(numbers)
        if self.reference is not None:
            self.reference.load(folder, numbers)


class Progress:
    """All ranks: each saves and loads its part, rank 0 publishes and commits."""

    def __init__(
        self,
        config: VcppoConfig,
        actor: TrainEngine,
        critic: TrainEngine | None,
        share: Share,
        rank_zero: RankZero | None,
        kept: Kept,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self._stop_requested = stop_requested
        self._config, self._share, self._rank_zero = config, share, rank_zero
        self._kept = kept
        self._engines = {"actor": actor} if critic is None else {"actor": actor, "critic": critic}
        self._store = None if rank_zero is None else rank_zero.store
        self._checkpoints = CheckpointStore(
            RunFolder(config.run.path).checkpoints,
            keep=config.learner.keep_checkpoints,
            incarnation=agree(rank_zero, lambda it: it.store.incarnation),  # in the name of what is begun
            confirm=self._confirm,
        )
        self._uncommitted: list[str] = []
        self._next_index: dict[str, int] = {}
        self._claims: list[tuple[int, list[str]]] = []

    @property
    def has_uncommitted(self) -> bool:
        """Whether something was trained that no checkpoint has."""
        return bool(self._uncommitted)

    def pin(self, version: int) -> None:
        """Keep the checkpoint of this version, if there is one, beside the newest; the one pinned before is let go."""
        self._checkpoints.pinned = version

    def add(self, version: int, batch: Batch, phases: Phases) -> None:
        """The batch is trained and made `version`. Every k steps and at the end: a checkpoint, then the commit."""
        self._uncommitted.extend(batch.prompt_ids)
        if version % self._config.learner.checkpoint_every == 0 or version == self._config.rl.num_steps:
            with phases.phase("checkpoint"):
                self.checkpoint_and_commit(version)

    def checkpoint_and_commit(self, version: int) -> None:
        """Nothing to do when nothing was trained since the last one. Waits where there is no room for it.

        Raises:
            ResourceExhausted: asked to stop while there was no room; the steps since the last one are trained again.
        """
        if not self._uncommitted:
            return
        root, staging = self._checkpoints.root, self._checkpoints.staging(version)
        parts = [
            partial(self._begin, version),
            *(partial(engine.save, staging / name) for name, engine in self._engines.items()),
            partial(save_rng, staging, self._share.rank),
            partial(self._publish, version),
        ]
        try:
            write_together(parts, self._checkpoints.remove_leftovers, "the checkpoint", root, self._stop_requested)
        except FileNotFoundError:
            self._confirm()  # a successor removes what we had begun: then that is what to say
            raise
        if self._rank_zero is not None:
            commit(self._rank_zero.store, self._uncommitted, version)
            folder = root / folder_name(version)
            log.info("checkpoint_written", folder=str(folder), policy_version=version)
        self._uncommitted = []

    def _begin(self, version: int) -> None:
        if self._rank_zero is not None:
            staging = self._checkpoints.begin(version)
            write_settings(staging, self._config)
            self._kept.save(staging)

    def _publish(self, version: int) -> None:
        if self._rank_zero is not None:
            self._checkpoints.publish(self._state(version, self._rank_zero))

    def _confirm(self) -> None:
        if self._store is not None:
            self._store.confirm()

    def resume(self) -> int:
        """Load the newest sound checkpoint, if there is one; the version to go on from."""
        version = 0
        if self._rank_zero is not None:
            self._checkpoints.remove_leftovers()
        found = agree(self._rank_zero, lambda _: newest_checkpoint(self._checkpoints, self._config))
        if found is not None:
            version = self._load(Path(found["folder"]), found)
        plan = agree(self._rank_zero, lambda it: plan_replay(it.store, version, self._checkpoints.root))
        self._claims = [(int(step), list(prompt_ids)) for step, prompt_ids in plan["claims"]]
        return int(plan["version"])

    def claimed_again(self, version: int) -> Iterator[Batch]:
        """After `resume`: the batches that were claimed before the crash and are in no checkpoint, in their order.

        Without what can't be used any more; a batch of which nothing is left comes empty.
        """
        for number, (step, prompt_ids) in enumerate(self._claims):
            payloads = agree(self._rank_zero, partial(sound_claims, step, prompt_ids))
            if self._rank_zero is not None:
                log.info("step_replayed", step=step, num_trajectories=len(payloads))
            yield Batch.decode(payloads, version + number)

    def _state(self, version: int, rank_zero: RankZero) -> CheckpointState:
        return CheckpointState(
            step=version,
            next_index={**self._next_index, "rl": rank_zero.issuer.next_index},
            prompt_ids=list(self._uncommitted),
            config_hash=config_hash(self._config),
            num_ranks=self._share.num_ranks,
            zero_stage=self._config.learner.zero_stage,
            extra=self._kept.numbers(),
        )

    def _load(self, folder: Path, state: dict[str, Any]) -> int:
        watchdog.stage("load")
        for name, engine in self._engines.items():
            engine.load(folder / name)
        load_rng(folder, self._share.rank)
        self._kept.load(folder, state["extra"])
        self._next_index = dict(state["next_index"])
        if self._rank_zero is not None:
            self._rank_zero.issuer.not_before(int(self._next_index.get("rl", 0)))
            log.info("checkpoint_loaded", folder=str(folder), policy_version=int(state["step"]))
        return int(state["step"])

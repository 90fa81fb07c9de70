"""What of a run survives: checkpoints, and the commits that follow them. How a crash is made good: `rl.resume`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.common.run_folder import RunFolder
from vcppo.learner.batching.batch import Batch, Share
from vcppo.learner.engine.checkpoint import CheckpointState, CheckpointStore, load_rng, save_rng
from vcppo.learner.engine.deepspeed_engine import TrainEngine, barrier
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.rank_zero import RankZero, agree
from vcppo.learner.rl.resume import commit, config_hash, newest_checkpoint, plan_replay, write_settings

log = structlog.get_logger(__name__)


class Progress:
    """All ranks: each saves and loads its part, rank 0 publishes and commits."""

    def __init__(
        self,
        config: VcppoConfig,
        actor: TrainEngine,
        critic: TrainEngine | None,
        share: Share,
        rank_zero: RankZero | None,
    ) -> None:
        self._config, self._share, self._rank_zero = config, share, rank_zero
        self._engines = {"actor": actor} if critic is None else {"actor": actor, "critic": critic}
        self._checkpoints = CheckpointStore(
            RunFolder(config.run.path).checkpoints, keep=config.learner.keep_checkpoints
        )
        self._uncommitted: list[str] = []
        self._next_index: dict[str, int] = {}
        self._claims: list[tuple[int, list[str]]] = []

    @property
    def has_uncommitted(self) -> bool:
        """Whether something was trained that no checkpoint has."""
        return bool(self._uncommitted)

    def add(self, version: int, batch: Batch, phases: Phases) -> None:
        """The batch is trained and made `version`. Every k steps and at the end: a checkpoint, then the commit."""
        self._uncommitted.extend(batch.prompt_ids)
        if version % self._config.learner.checkpoint_every == 0 or version == self._config.rl.num_steps:
            with phases.phase("checkpoint"):
                self.checkpoint_and_commit(version)

    def checkpoint_and_commit(self, version: int) -> None:
        """Nothing to do when nothing was trained since the last one."""
        if not self._uncommitted:
            return
        if self._rank_zero is not None:
            write_settings(self._checkpoints.begin(version), self._config)
        barrier()
        staging = self._checkpoints.staging(version)
        for name, engine in self._engines.items():
            engine.save(staging / name)
        save_rng(staging, self._share.rank)
        barrier()
        if self._rank_zero is not None:
            folder = self._checkpoints.publish(self._state(version, self._rank_zero))
            commit(self._rank_zero.store, self._uncommitted, version)
            log.info("checkpoint_written", folder=str(folder), policy_version=version)
        self._uncommitted = []

    def resume(self) -> int:
        """Load the newest sound checkpoint, if there is one; the version to go on from."""
        version = 0
        found = agree(self._rank_zero, lambda _: newest_checkpoint(self._checkpoints, self._config, self._share))
        if found is not None:
            version = self._load(Path(found["folder"]), found)
        plan = agree(self._rank_zero, lambda it: plan_replay(it.store, version, self._checkpoints.root))
        self._claims = [(int(step), list(prompt_ids)) for step, prompt_ids in plan["claims"]]
        return int(plan["version"])

    def claimed_again(self, version: int) -> Iterator[Batch]:
        """After `resume`: the batches that were claimed before the crash and are in no checkpoint, in their order."""
        for number, (step, prompt_ids) in enumerate(self._claims):
            payloads = agree(self._rank_zero, partial(_payloads, prompt_ids))
            if self._rank_zero is not None:
                log.info("step_replayed", step=step, num_trajectories=len(prompt_ids))
            yield Batch.decode(payloads, version + number)

    def _state(self, version: int, rank_zero: RankZero) -> CheckpointState:
        return CheckpointState(
            step=version,
            next_index={**self._next_index, "rl": rank_zero.issuer.next_index},
            prompt_ids=list(self._uncommitted),
            config_hash=config_hash(self._config),
            num_ranks=self._share.num_ranks,
            zero_stage=self._config.learner.zero_stage,
        )

    def _load(self, folder: Path, state: dict[str, Any]) -> int:
        watchdog.stage("load")
        for name, engine in self._engines.items():
            engine.load(folder / name)
        load_rng(folder, self._share.rank)
        self._next_index = dict(state["next_index"])
        if self._rank_zero is not None:
            self._rank_zero.issuer.not_before(int(self._next_index.get("rl", 0)))
            log.info("checkpoint_loaded", folder=str(folder), policy_version=int(state["step"]))
        return int(state["step"])


def _payloads(prompt_ids: list[str], rank_zero: RankZero) -> list[bytes]:
    return rank_zero.store.payloads(prompt_ids)

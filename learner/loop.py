"""The learner's loop: Algorithm 1 (VC-PPO) over a stream of asynchronous trajectories.

    store ──claim──▶ values ▶ old log-probs ▶ advantages (lambda_actor), targets (lambda_critic)
      ▲              E epochs x M mini-batches: clipped objective, value loss, one actor and one critic step
      │                                                   │ policy version + 1
      └──issue by credit ◀── broadcast ◀── commit ◀── checkpoint (every k steps)

Read `RlLoop.run` and `RlLoop.train`; the rest of the file is what they call. Every rank runs the same loop.
Rank 0 talks to the store and tells the others what it found (`_agree`); while it waits it does so every second,
so no collective of another rank ever waits longer than that.

    consumes     the batch `learner.credits.select_batch` chooses
    waits for    its trajectories, at most learner.batch_deadline_seconds (`learner.collect`)
    unblocked by an append to the buffer, a request to stop

Step s (from 1) trains the batch claimed at version s - 1 and makes version s. Its trained ids are on disk before
anything is committed, and a commit comes only after the checkpoint that contains the step is durable.

How a crash is made good: `learner.resume`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from common import watchdog
from common.config import VcppoConfig
from common.metrics import MetricsWriter
from common.run_folder import RunFolder
from common.store import RunStore
from learner.batch import Batch, Share, mini_batches
from learner.canary import CanaryProbe
from learner.checkpoint import CheckpointState, CheckpointStore, load_rng, save_rng
from learner.collect import BatchCollector, PromptIssuer
from learner.engine import barrier, broadcast_object
from learner.probe import make_probe, probe_tokens
from learner.resume import commit, config_hash, newest_checkpoint, plan_replay, write_settings
from learner.samples import SampleWriter
from learner.step_metrics import step_metrics
from learner.trained_log import TrainedLog
from learner.update import Estimates, Models, UpdateStats, combine, compute_old_log_probs, compute_values, update
from learner.weight_transfer import BroadcastReport

log = structlog.get_logger(__name__)

SYNC_CHECK_SECONDS = 2.0


class Broadcaster(Protocol):
    """What the loop needs of `learner.weight_transfer.WeightBroadcaster`."""

    def broadcast(self, policy_version: int, canary: CanaryProbe | None = None) -> BroadcastReport: ...

    def out_of_sync(self, policy_version: int) -> list[str]: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class RankZero:
    """What only rank 0 has: the store, and what writes to the run folder."""

    store: RunStore
    issuer: PromptIssuer
    collector: BatchCollector
    metrics: MetricsWriter
    trained_log: TrainedLog
    samples: SampleWriter


class Phases:
    """Seconds by phase of one step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        watchdog.stage(name)
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started

    def finish(self) -> dict[str, float]:
        return {**self.seconds, "step": time.monotonic() - self._started}


class RlLoop:
    """One RL run of one rank. `run` returns True when all steps are done, False when it was asked to stop."""

    def __init__(
        self,
        config: VcppoConfig,
        models: Models,
        share: Share,
        broadcaster: Broadcaster,
        rank_zero: RankZero | None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> None:
        self.config = config
        self.models = models
        self.share = share
        self.version = 0  # policy version = steps done
        self._broadcaster = broadcaster
        self._rank_zero = rank_zero
        self._stop_requested = stop_requested
        self._checkpoints = CheckpointStore(
            RunFolder(config.run.path).checkpoints, keep=config.learner.keep_checkpoints
        )
        self._uncommitted: list[str] = []
        self._next_index: dict[str, int] = {}
        self._probe: CanaryProbe | None = None
        self._probed_version = -1
        self._probe_tokens: list[list[int]] | None = None
        self._next_sync_check = 0.0

    def run(self) -> bool:
        """Resume if there is something to resume, then step until the end or until asked to stop."""
        self._resume()
        self._issue()
        while self.version < self.config.rl.num_steps:
            phases = Phases()
            with phases.phase("claim"):
                batch = self._collect()
            if batch is None:
                self._checkpoint_and_commit()
                return False
            estimates, stats = self.train(batch, phases)
            self._finish_step(batch, estimates, stats, phases)
            self._broadcast_if_not_last(phases)
            self._issue()
            self._record(batch, estimates, stats, phases)
        return True

    def train(self, batch: Batch, phases: Phases) -> tuple[Estimates, UpdateStats]:
        """Algorithm 1 on one batch; the policy's version goes up by one."""
        algorithm, temperature = self.config.algorithm, self.config.sampling.temperature
        with phases.phase("values"):
            values, last_values = compute_values(self.models.critic, batch, self.share)
        with phases.phase("old_log_probs"):
            proximal, reference = compute_old_log_probs(self.models, batch, algorithm, self.share, temperature)
        estimates = combine(batch, algorithm, values, last_values, proximal, reference)
        stats = UpdateStats(num_buckets=self.config.rl.max_staleness + 1)
        with phases.phase("update"):
            for epoch in range(algorithm.num_epochs):
                for members in self._mini_batches(batch, epoch):
                    watchdog.stage("update")
                    update(self.models, batch, estimates, members, algorithm, self.share, temperature, stats)
        self.version += 1
        return estimates, stats.gathered()

    def _mini_batches(self, batch: Batch, epoch: int) -> list[list[int]]:
        return mini_batches(
            batch,
            self.config.algorithm.num_mini_batches,
            seed=self.config.run.seed,
            step=self.version + 1,
            epoch=epoch,
        )

    # Collecting (rank 0 decides, all ranks learn)

    def _agree(self, decide: Callable[[RankZero], Any]) -> Any:
        """Rank 0's plain value on every rank."""
        return broadcast_object(decide(self._rank_zero) if self._rank_zero is not None else None)

    def _collect(self) -> Batch | None:
        """The claimed batch of the next step; None: stop. Brings generators that lag behind up to date meanwhile."""
        while True:
            watchdog.stage("claim", waiting_for=["trajectories"] if self._rank_zero else ["learner rank 0"])
            decision = self._agree(self._poll)
            if decision["do"] == "stop":
                return None
            if decision["do"] == "broadcast":
                self._broadcast()
            elif decision["do"] == "commit":
                self._checkpoint_and_commit()
            elif decision["do"] == "train":
                return Batch.decode(decision["payloads"], self.version)

    def _poll(self, rank_zero: RankZero) -> dict[str, Any]:
        if self._stop_requested():
            return {"do": "stop"}
        ids = rank_zero.collector.poll(self.version)
        if ids is not None:
            return {"do": "train", "payloads": rank_zero.store.claim(ids, self.version + 1)}
        if time.monotonic() >= self._next_sync_check:
            self._next_sync_check = time.monotonic() + SYNC_CHECK_SECONDS
            lagging = self._broadcaster.out_of_sync(self.version)
            if lagging:
                log.info("generators_out_of_sync", generators=lagging, policy_version=self.version)
                return {"do": "broadcast"}
        if self._uncommitted and rank_zero.issuer.is_held_back:  # a commit makes room
            return {"do": "commit"}
        return {"do": "wait"}

    # After the update

    def _finish_step(self, batch: Batch, estimates: Estimates, stats: UpdateStats, phases: Phases) -> None:
        """Write down what was trained; every k steps and at the end checkpoint, then commit.

        What was measured is on disk before anything that may fail (checkpoint, broadcast). `_record` repeats it, with
        the times of what follows.
        """
        self._uncommitted.extend(batch.prompt_ids)
        if self._rank_zero is not None:
            self._rank_zero.trained_log.append(self.version, batch)
            ids = [trajectory.id for trajectory in batch.trajectories]
            log.debug("trajectories_trained", policy_version=self.version, trajectory_ids=ids)
            early = self._measure(batch, estimates, stats, phases)
            self._rank_zero.metrics.write(self.version, early, final=False)
            self._rank_zero.samples.write(self.version, batch.trajectories)
        due = self.version % self.config.learner.checkpoint_every == 0 or self.version == self.config.rl.num_steps
        if due:
            with phases.phase("checkpoint"):
                self._checkpoint_and_commit()

    def _checkpoint_and_commit(self) -> None:
        if not self._uncommitted:
            return
        if self._rank_zero is not None:
            write_settings(self._checkpoints.begin(self.version), self.config)
        barrier()
        staging = self._checkpoints.staging(self.version)
        self.models.actor.save(staging / "actor")
        if self.models.critic is not None:
            self.models.critic.save(staging / "critic")
        save_rng(staging, self.share.rank)
        barrier()
        if self._rank_zero is not None:
            folder = self._checkpoints.publish(self._state())
            commit(self._rank_zero.store, self._uncommitted, self.version)
            log.info("checkpoint_written", folder=str(folder), policy_version=self.version)
        self._uncommitted = []

    def _state(self) -> CheckpointState:
        assert self._rank_zero is not None
        return CheckpointState(
            step=self.version,
            next_index={**self._next_index, "rl": self._rank_zero.issuer.next_index},
            prompt_ids=list(self._uncommitted),
            config_hash=config_hash(self.config),
            num_ranks=self.share.num_ranks,
            zero_stage=self.config.learner.zero_stage,
        )

    def _broadcast_if_not_last(self, phases: Phases) -> None:
        """Nobody generates for the version after the last step; `learner.export` writes its weights."""
        if self.version == self.config.rl.num_steps:
            return
        with phases.phase("broadcast"):
            report = self._broadcast()
        phases.seconds["pause"] = report.pause_seconds

    def _broadcast(self) -> BroadcastReport:
        """Bring every generator to the present weights, and prove it by the task's own prompts."""
        if self._probe_tokens is None:
            self._probe_tokens = self._agree(lambda rank_zero: probe_tokens(rank_zero.issuer.source, self.config))
        if self._probed_version != self.version:
            self._probe = make_probe(self.models.actor, self._probe_tokens or [], self.config)
            self._probed_version = self.version
        return self._broadcaster.broadcast(self.version, self._probe)

    def _issue(self) -> None:
        if self._rank_zero is not None:
            self._rank_zero.collector.issue(self.version)

    def _measure(self, batch: Batch, estimates: Estimates, stats: UpdateStats, phases: Phases) -> dict[str, Any]:
        return step_metrics(batch, estimates, stats, phases.finish(), has_critic=self.models.critic is not None)

    def _record(self, batch: Batch, estimates: Estimates, stats: UpdateStats, phases: Phases) -> None:
        if self._rank_zero is None:
            return
        values = self._measure(batch, estimates, stats, phases)
        ledger = self._rank_zero.store.ledger()
        values |= {f"ledger/{state}": count for state, count in ledger.as_dict().items()}
        self._rank_zero.metrics.write(self.version, values)
        log.info("step", **_log_fields(self.version, values))
        if not ledger.is_exact:
            log.error("ledger_not_exact", ledger=str(ledger))

    # Resume (the reasoning is in `learner.resume`)

    def _resume(self) -> None:
        found = self._agree(lambda _: newest_checkpoint(self._checkpoints, self.config, self.share))
        if found is not None:
            self._load(Path(found["folder"]), found)
        plan = self._agree(lambda rank_zero: plan_replay(rank_zero.store, self.version, self._checkpoints.root))
        self.version = plan["version"]
        for step, prompt_ids in plan["claims"]:
            self._replay(step, prompt_ids)
        if self.version < self.config.rl.num_steps:
            self._broadcast()  # also at version 0: what generators answer now is compared with their next answers

    def _load(self, folder: Path, state: dict[str, Any]) -> None:
        watchdog.stage("load")
        self.models.actor.load(folder / "actor")
        if self.models.critic is not None:
            self.models.critic.load(folder / "critic")
        load_rng(folder, self.share.rank)
        self.version = int(state["step"])
        self._next_index = dict(state["next_index"])
        if self._rank_zero is not None:
            self._rank_zero.issuer.not_before(int(self._next_index.get("rl", 0)))
            log.info("checkpoint_loaded", folder=str(folder), policy_version=self.version)

    def _replay(self, step: int, prompt_ids: list[str]) -> None:
        payloads = self._agree(lambda rank_zero: rank_zero.store.payloads(prompt_ids))
        if self._rank_zero is not None:
            log.info("step_replayed", step=step, num_trajectories=len(prompt_ids))
        phases = Phases()
        batch = Batch.decode(payloads, self.version)
        estimates, stats = self.train(batch, phases)
        self._finish_step(batch, estimates, stats, phases)
        self._record(batch, estimates, stats, phases)


def _log_fields(version: int, values: dict[str, Any]) -> dict[str, Any]:
    """The one line a user reads per step."""
    chosen = {
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
    fields = {name: values.get(key) for name, key in chosen.items()}
    return {"policy_version": version} | {
        name: round(value, 4) if isinstance(value, float) else value for name, value in fields.items()
    }

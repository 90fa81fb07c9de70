"""The learner's loop: Algorithm 1 (VC-PPO) over a stream of asynchronous trajectories.

    store ──claim──▶ values ▶ old log-probs ▶ advantages (lambda_actor), targets (lambda_critic)
      ▲              E epochs x M mini-batches: clipped objective, value loss, one actor and one critic step
      │                                                   │ policy version + 1
      └──issue by credit ◀── broadcast ◀── commit ◀── checkpoint (every k steps)

Read `RlLoop.run`, `RlLoop.train` and `RlLoop._update`. What stands beside them: `vcppo.learner.rl.claiming` (which
batch is next), `vcppo.learner.rl.publish` (weights to generators), `vcppo.learner.rl.progress` (checkpoint, commit,
resume) and `vcppo.learner.rl.step_record` (metrics, samples, the trained log).

Every rank runs the same loop. Rank 0 talks to the store and tells the others what it found (`agree`); while it waits
it does so every second, so no collective of another rank ever waits longer than that.

    consumes     the batch `vcppo.learner.supply.credits.select_batch` chooses
    waits for    its trajectories, at most learner.batch_deadline_seconds (`vcppo.learner.supply.collect`)
    unblocked by an append to the buffer, a request to stop

Step s (from 1) trains the batch claimed at version s - 1 and makes version s. Its trained ids are on disk before
anything is committed, and a commit comes only after the checkpoint that contains the step is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.learner.algorithm.losses import kl_penalty, policy_loss, probability_ratio, value_loss
from vcppo.learner.batching.batch import Batch, Packer, Share, mini_batches, num_trained
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.engine.forward import compute_log_probs, compute_values
from vcppo.learner.models.models import PolicyModel
from vcppo.learner.rl.claiming import Claiming
from vcppo.learner.rl.estimates import Estimates, estimate
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.progress import Progress
from vcppo.learner.rl.publish import Broadcaster, Publisher
from vcppo.learner.rl.rank_zero import RankZero
from vcppo.learner.rl.step_record import StepRecord
from vcppo.learner.rl.update_stats import UpdateStats


@dataclass(frozen=True)
class Models:
    """The engines; ``critic`` is None for the group estimators, ``reference`` unless a KL term needs it."""

    actor: TrainEngine
    critic: TrainEngine | None
    reference: PolicyModel | None = None


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
        self.config, self.models, self.share = config, models, share
        self.version = 0  # policy version = steps done
        self._publisher = Publisher(config, models.actor, broadcaster, rank_zero)
        self._progress = Progress(config, models.actor, models.critic, share, rank_zero)
        self._claiming = Claiming(rank_zero, self._publisher, self._progress, stop_requested)
        self._record = StepRecord(rank_zero, has_critic=models.critic is not None)

    def run(self) -> bool:
        """Resume if there is something to resume, then step until the end or until asked to stop."""
        self.version = self._progress.resume()
        for again in self._progress.claimed_again(self.version):
            self._step(again, Phases())
        if self.version < self.config.rl.num_steps:
            self._publisher.publish(self.version)  # at version 0 too: later answers are compared with those of now
        phases = Phases()
        while self.version < self.config.rl.num_steps:
            self._claiming.issue(self.version)
            with phases.phase("claim"):
                batch = self._claiming.next_batch(self.version)
            if batch is None:
                self._progress.checkpoint_and_commit(self.version)
                return False
            phases = self._step(batch, phases)
            if self.version < self.config.rl.num_steps:  # for the last version nobody generates: it is exported
                self._publisher.publish(self.version, phases)
        return True

    def _step(self, batch: Batch, phases: Phases) -> Phases:
        """Train, write down what was measured, then checkpoint and commit if due. Returns the next step's phases."""
        estimates, stats = self.train(batch, phases)
        self._record.write(self.version, batch, estimates, stats, phases.finish())
        following = Phases()
        self._progress.add(self.version, batch, following)
        return following

    def train(self, batch: Batch, phases: Phases) -> tuple[Estimates, UpdateStats]:
        """Algorithm 1 on one batch; the policy's version goes up by one."""
        actor, critic, reference = self.models.actor, self.models.critic, self.models.reference
        algorithm, temperature = self.config.algorithm, self.config.sampling.temperature
        packer = Packer(batch, self.share)
        with phases.phase("values"):
            values, last_values = compute_values(critic, packer)  # V(s_t), and V after the last token
        with phases.phase("old_log_probs"):  # log pi_old(a_t | s_t)
            proximal = algorithm.old_log_probs == "proximal"
            old_log_probs = compute_log_probs(actor, packer, temperature) if proximal else batch.behaviour_log_probs
            reference_log_probs = None if reference is None else compute_log_probs(reference, packer, temperature)
        estimates = estimate(  # A_t (paper, eq. 4) and R_t (eq. 5)
            batch, values, last_values, old_log_probs, algorithm,
            lambda_actor=algorithm.lambda_actor, lambda_critic=algorithm.lambda_critic,
            reference_log_probs=reference_log_probs,
        )  # fmt: skip
        stats = UpdateStats(num_buckets=self.config.rl.max_staleness + 1)
        with phases.phase("update"):
            for epoch in range(algorithm.num_epochs):
                for members in self._mini_batches(batch, epoch):
                    watchdog.stage("update")
                    self._update(packer, members, estimates, stats)
        self.version += 1
        return estimates, stats.gathered()

    def _update(self, packer: Packer, members: Sequence[int], estimates: Estimates, stats: UpdateStats) -> None:
        """One mini-batch: gradients of its micro-batches add up, then one actor and one critic step."""
        actor, critic, algorithm = self.models.actor, self.models.critic, self.config.algorithm
        proximal = algorithm.old_log_probs == "proximal"
        # Over all ranks: neither packing nor ranks change the objective.
        num_tokens = num_trained(estimates.mask, packer.batch.action_cu_seqlens, members)
        for micro in packer.micro_batches(members):
            packed, part = micro.packed.to(actor.device), estimates.of(micro, actor.device)
            log_probs, entropy = actor.forward(packed, self.config.sampling.temperature)
            ratio = probability_ratio(log_probs, part.old_log_probs)  # rho_t = pi / pi_old
            policy = policy_loss(  # - mean of w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t)
                log_probs, part.old_log_probs, part.advantages, num_tokens=num_tokens, mask=part.mask,
                clip_low=algorithm.clip_low, clip_high=algorithm.clip_high,
                behaviour_log_probs=part.behaviour_log_probs,
                importance_truncation=algorithm.importance_truncation if proximal else None,
            )  # fmt: skip
            stats.add_policy(policy, ratio, entropy, part, algorithm)
            objective = policy.value
            if part.reference_log_probs is not None:  # + kl_coefficient KL(pi || pi_reference)
                penalty = kl_penalty(log_probs, part.reference_log_probs, num_tokens=num_tokens, mask=part.mask)
                stats.add("policy", {"kl_penalty": penalty.sums["kl_penalty"]})
                objective = objective + algorithm.kl_coefficient * penalty.value
            actor.accumulate(objective)
            if critic is not None:  # mean of 1/2 (V(s_t) - R_t)^2
                value = value_loss(
                    critic.forward(packed).values, part.value_targets, num_tokens=num_tokens, mask=part.mask,
                    old_values=part.values, value_clip=algorithm.value_clip,
                )  # fmt: skip
                stats.add("critic", value.sums)
                critic.accumulate(value.value)
        stats.actor_grad_norms.append(actor.step())
        if critic is not None:
            stats.critic_grad_norms.append(critic.step())

    def _mini_batches(self, batch: Batch, epoch: int) -> list[list[int]]:
        """M parts in an order drawn by seed, step and epoch, so that a step done again draws the same."""
        number, seed = self.config.algorithm.num_mini_batches, self.config.run.seed
        return mini_batches(batch, number, seed=seed, step=self.version + 1, epoch=epoch)

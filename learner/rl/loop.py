"""The learner's loop: Algorithm 1 (VC-PPO) over a stream of asynchronous trajectories.

    store ──claim──▶ values ▶ old log-probs ▶ advantages (lambda_actor), targets (lambda_critic)
      ▲              E epochs x M mini-batches: clipped objective, value loss, one actor and one critic step
      │                                                   │ policy version + 1
      └──issue by credit ◀── broadcast ◀── commit ◀── checkpoint (every k steps)

Read `RlLoop.run`, `RlLoop.train` and `RlLoop._update`. What stands beside them: `vcppo.learner.rl.claiming` (which
batch is next), `vcppo.learner.critic_training.passes` (what the critic does while the next batch is made),
`vcppo.learner.rl.publish` (weights to generators), `vcppo.learner.rl.progress` (checkpoint, commit, resume),
`vcppo.learner.rl.suspects` (a step that fails) and `vcppo.learner.rl.step_record` (metrics, samples, the trained log).

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
from vcppo.learner.algorithm.actor_loss import Denominators, actor_loss
from vcppo.learner.algorithm.aggregation import loss_denominator
from vcppo.learner.algorithm.entropy_target import EntropyWeight
from vcppo.learner.algorithm.learning_rates import rate_factor
from vcppo.learner.algorithm.losses import probability_ratio
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.batch import Batch, Packer, Share, mini_batches, num_trained
from vcppo.learner.critic_training.passes import CriticPasses
from vcppo.learner.critic_training.update import critic_loss
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.engine.forward import compute_log_probs, compute_values
from vcppo.learner.engine.reference import Reference
from vcppo.learner.evaluation.evaluations import Evaluations
from vcppo.learner.profiling.step_profile import StepProfile
from vcppo.learner.rl.claiming import Claiming
from vcppo.learner.rl.estimates import Estimates, estimate
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.progress import Kept, Progress
from vcppo.learner.rl.publish import Broadcaster, Publisher
from vcppo.learner.rl.rank_zero import RankZero
from vcppo.learner.rl.step_record import StepRecord
from vcppo.learner.rl.suspects import Suspects, require_finite
from vcppo.learner.rl.update_stats import UpdateStats


@dataclass(frozen=True)
class Models:
    """The engines; ``critic`` is None for the group estimators, ``reference`` unless a KL term needs it."""

    actor: TrainEngine
    critic: TrainEngine | None
    reference: Reference | None = None


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
        self._bins = ValueBins.of(config)
        self._publisher = Publisher(config, models.actor, broadcaster, rank_zero)
        self._critic_passes = CriticPasses(config, models.critic, share)
        self._entropy_weight = EntropyWeight(config.algorithm)
        kept = Kept(self._critic_passes, self._entropy_weight, models.reference)
        self._progress = Progress(config, models.actor, models.critic, share, rank_zero, kept, stop_requested)
        self._claiming = Claiming(rank_zero, self._publisher, self._progress, stop_requested)
        self._suspects = Suspects(config, models.actor, models.critic, share, rank_zero)
        self._stop_requested = stop_requested
        self.evaluations = Evaluations(
            config, models.actor, None if rank_zero is None else rank_zero.evaluator,
            self._publisher, stop_requested, self._progress.pin,
        )  # fmt: skip
        self._record = StepRecord(rank_zero, has_critic=models.critic is not None)
        self._profile = StepProfile(config, share.rank)

    def run(self) -> bool:
        """Resume if there is something to resume, then step until the end or until asked to stop."""
        self.version = self._progress.resume()
        self._set_rates(self.version)
        for again in self._progress.claimed_again(self.version):
            self._evaluate()  # the last time that there are these weights
            self._step(self._suspects.without_faulty(self.version + 1, again), Phases())
        if self.version < self.config.rl.num_steps:
            self._publisher.publish(self.version)  # at version 0 too: later answers are compared with those of now
            self.evaluations.begin(self.version)
        phases = Phases()
        while self.version < self.config.rl.num_steps and not self.evaluations.has_plateaued():
            with self._profile.of(self.version + 1):
                self._claiming.issue(self.version)
                self._catch_up(phases)  # generators are at work meanwhile
                with phases.phase("claim"):
                    batch = self._claiming.next_batch(self.version)
                if batch is None:
                    self._progress.checkpoint_and_commit(self.version)
                    return False
                phases = self._step(batch, phases)
                if self.version < self.config.rl.num_steps:  # for the last version nobody generates: it is exported
                    self._publisher.publish(self.version, phases)
                    self.evaluations.begin(self.version)
        self._evaluate()
        self._progress.checkpoint_and_commit(self.version)  # nothing is left to do but where the run ends early
        return True

    def _evaluate(self) -> None:
        """The weights of now, if they are to be and are not yet: nothing is trained meanwhile."""
        if self.evaluations.is_due(self.version):
            self._publisher.publish(self.version)
            self.evaluations.begin(self.version)
            self.evaluations.finish(self.version)

    def _catch_up(self, phases: Phases) -> None:
        """More passes of the critic over what is trained, where the config asks for them."""
        if self._critic_passes.are_due:
            with phases.phase("critic_passes"):
                self._critic_passes.catch_up(self._stop_requested)

    def _step(self, batch: Batch, phases: Phases) -> Phases:
        """Train, write down what was measured, then checkpoint and commit if due. Returns the next step's phases."""
        self._catch_up(phases)  # nothing is due but where a batch is trained again
        if not len(batch):  # a replayed one of which nothing could be used
            return self._pass_over(batch, phases)
        begun_with = self._begun_with()
        with self._suspects.watched(self.version + 1, batch):
            estimates, stats = self.train(batch, phases)
        self._record.write(self.version, batch, estimates, stats, phases.finish(), self._figures() | begun_with)
        following = Phases()
        with following.phase("evaluation"):  # before a checkpoint: after a crash there are the weights for it again
            self.evaluations.finish(self.version)
        self._progress.add(self.version, batch, following)
        return following

    def _pass_over(self, batch: Batch, phases: Phases) -> Phases:
        """A version with the weights of the one before."""
        self._advance()
        self._record.write_nothing(self.version, batch)
        self._progress.add(self.version, batch, phases)
        return phases

    def train(self, batch: Batch, phases: Phases) -> tuple[Estimates, UpdateStats]:
        """Algorithm 1 on one batch; the policy's version goes up by one."""
        actor, critic, algorithm = self.models.actor, self.models.critic, self.config.algorithm
        reference = None if self.models.reference is None else self.models.reference.model
        temperature = self.config.sampling.temperature
        packer = Packer(batch, self.share)
        self._set_rates(self.version + 1)
        with phases.phase("values"):
            values, last_values = compute_values(critic, packer)  # V(s_t), and V after the last token
        with phases.phase("old_log_probs"):  # log pi_old(a_t | s_t)
            old_log_probs, entropy = batch.behaviour_log_probs, None
            if algorithm.old_log_probs == "proximal":
                old_log_probs, entropy = compute_log_probs(actor, packer, temperature)
            reference_log_probs = None
            if reference is not None:
                reference_log_probs = compute_log_probs(reference, packer, temperature).log_probs
        require_finite(
            batch, {"values": values, "log-probs": old_log_probs, "reference log-probs": reference_log_probs}
        )
        estimates = estimate(  # A_t (paper, eq. 4) and R_t (eq. 5)
            batch, values, last_values, old_log_probs, algorithm,
            lambda_actor=algorithm.lambda_actor, lambda_critic=algorithm.lambda_critic,
            reference_log_probs=reference_log_probs, held_out=self._critic_passes.held_out(batch), entropy=entropy,
        )  # fmt: skip
        stats = UpdateStats(num_buckets=self.config.rl.max_staleness + 1)
        with phases.phase("update"):
            for epoch in range(algorithm.num_epochs):
                for members in self._mini_batches(batch, epoch):
                    watchdog.stage("update")
                    self._update(packer, members, estimates, stats)
        self._critic_passes.add(batch, estimates)
        stats = stats.gathered()
        self._entropy_weight.after(stats.mean("policy/entropy"))
        self._advance()
        return estimates, stats

    def _advance(self) -> None:
        """The policy is a new version now."""
        self.version += 1
        if self.models.reference is not None:
            self.models.reference.after(self.version, self.models.actor)

    def _update(self, packer: Packer, members: Sequence[int], estimates: Estimates, stats: UpdateStats) -> None:
        """One mini-batch: gradients of its micro-batches add up, then one actor and one critic step."""
        actor, critic, algorithm = self.models.actor, self.models.critic, self.config.algorithm
        temperature, entropy_weight = self.config.sampling.temperature, self._entropy_weight.in_force
        # Over all ranks: neither packing nor ranks change the objective.
        denominators = self._denominators(packer.batch, members, estimates)
        num_critic_tokens = num_trained(estimates.critic_mask, packer.batch.action_cu_seqlens, members)
        for micro in packer.micro_batches(members):
            packed, part = micro.packed.to(actor.device), estimates.of(micro, actor.device)
            log_probs, entropy = actor.forward(packed, temperature, entropy_weight > 0)
            ratio = probability_ratio(log_probs, part.old_log_probs)  # rho_t = pi / pi_old
            # - mean of w_t min(rho_t A_t, clip(rho_t, 1 - clip_low, 1 + clip_high) A_t), + KL, - entropy
            loss = actor_loss(
                log_probs, entropy, part, algorithm, denominators, packed.action_cu_seqlens, entropy_weight
            )
            stats.add_policy(loss, ratio, part, algorithm)
            actor.accumulate(loss.value)
            if critic is not None:  # mean of 1/2 (V(s_t) - R_t)^2, or of the cross entropy with R_t over bins
                value = critic_loss(
                    critic.forward(packed), part.value_targets, self._bins, num_tokens=num_critic_tokens,
                    mask=part.critic_mask, old_values=part.values, value_clip=algorithm.value_clip,
                )  # fmt: skip
                stats.add("critic", value.sums)
                critic.accumulate(value.value)
        stats.actor_grad_norms.append(actor.step())
        if critic is not None:
            stats.critic_grad_norms.append(critic.step())

    def _denominators(self, batch: Batch, members: Sequence[int], estimates: Estimates) -> Denominators:
        """What the actor's sums over these sequences are divided by. They are whole rollouts, each one response."""
        mask, cu, kind = estimates.actor_mask, batch.rollout_action_cu_seqlens, self.config.algorithm.aggregation
        rollouts = batch.rollouts_of(members)
        policy = loss_denominator(mask, cu, rollouts, kind, self.config.sampling.max_response_tokens)
        return Denominators(policy, positive=num_trained(estimates.positive, cu, rollouts))

    def _set_rates(self, step: int) -> None:
        """Learning rates by the number of the step, so that a step done again has the same."""
        rl, critic = self.config.rl, self.models.critic
        for engine, schedule, warmup in (
            (self.models.actor, rl.actor_schedule, rl.actor_warmup_steps),
            (critic, rl.critic_schedule, rl.critic_warmup_steps),
        ):
            if engine is not None:
                engine.scale_learning_rate(
                    rate_factor(max(1, step), schedule=schedule, warmup_steps=warmup, num_steps=rl.num_steps)
                )

    def _begun_with(self) -> dict[str, float | int | None]:
        """What the next step takes from those before it, and changes."""
        figures: dict[str, float | int | None] = {}
        if self.config.algorithm.entropy_target is not None:
            figures["policy/entropy_coefficient"] = self._entropy_weight.in_force
        if self.models.reference is not None:
            figures["policy/reference_version"] = self.models.reference.version
        return figures

    def _figures(self) -> dict[str, float | int | None]:
        rates = {"policy/learning_rate": self.models.actor.learning_rate}
        if self.models.critic is not None:
            rates["critic/learning_rate"] = self.models.critic.learning_rate
        return {**rates, **self._critic_passes.figures}

    def _mini_batches(self, batch: Batch, epoch: int) -> list[list[int]]:
        """M parts in an order drawn by seed, step and epoch, so that a step done again draws the same."""
        number, seed = self.config.algorithm.num_mini_batches, self.config.run.seed
        return mini_batches(batch, number, seed=seed, step=self.version + 1, epoch=epoch)

"""Training the critic of value pretraining on one side of the split, measuring it on the other. Every rank runs it.

No value clipping: it throttles pretraining. The measured figure is explained variance against Monte-Carlo returns. The
held-out loss is half the squared error of the values whatever the head; the training loss is what is minimised.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.over_prompts import Figure, Sums
from vcppo.common.process import watchdog
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Trajectory
from vcppo.common.telemetry.metrics import MetricsWriter
from vcppo.learner.algorithm.advantages import Truncation, place_ends
from vcppo.learner.algorithm.gae import monte_carlo_returns
from vcppo.learner.algorithm.value_bins import ValueBins
from vcppo.learner.batching.batch import Batch, Packer, Share, micro_batches, num_trained
from vcppo.learner.critic_model.critic_engine import make_critic_engine
from vcppo.learner.critic_quality.explained_variance import explained_variance
from vcppo.learner.critic_quality.explained_variance_interval import choose_and_measure, measure, sums_by_prompt
from vcppo.learner.critic_training.update import critic_step
from vcppo.learner.engine.deepspeed_engine import TrainEngine, broadcast_object, sum_over_ranks
from vcppo.learner.engine.forward import compute_values
from vcppo.learner.value_pretraining.gate import Gate, Measurement
from vcppo.learner.value_pretraining.recording_stats import Counts, count_responses

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Part:
    """One side of the split, with its Monte-Carlo returns ``[A]`` and mask ``[A]``."""

    batch: Batch
    returns: np.ndarray[Any, np.dtype[np.float32]]
    mask: np.ndarray[Any, np.dtype[np.bool_]]

    @classmethod
    def of(cls, trajectories: Sequence[Trajectory], config: VcppoConfig) -> Part:
        """With truncation=bootstrap the return of a cut response is unknown, so it is left out as with mask."""
        batch = Batch(list(trajectories), version=0)
        truncation: Truncation = "terminal" if config.algorithm.truncation == "terminal" else "mask"
        cu = batch.action_cu_seqlens
        (earlier, last), no_values = batch.placed_rewards, np.zeros(len(batch), np.float32)
        ends = place_ends(last, no_values, batch.truncated, cu, truncation, earlier)
        return cls(batch, monte_carlo_returns(ends.rewards, cu, gamma=config.algorithm.gamma), ends.mask)

    @cached_property
    def counted(self) -> list[int]:
        """Sequences with a return; a mask leaves out whole ones."""
        cu = self.batch.action_cu_seqlens
        return [i for i in range(len(self.batch)) if cu[i + 1] > cu[i] and self.mask[cu[i]]]

    @property
    def counted_rollouts(self) -> list[Trajectory]:
        """The rollouts of `counted`."""
        return [self.batch.rollouts[i] for i in self.batch.rollouts_of(self.counted)]

    @property
    def counts(self) -> Counts:
        """Of the responses behind every figure."""
        return count_responses(self.counted_rollouts)

    @cached_property
    def counted_cu_seqlens(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """``[len(counted) + 1]`` of the actions under `mask`."""
        lengths = np.diff(self.batch.action_cu_seqlens)[self.counted]
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])

    @cached_property
    def counted_groups(self) -> list[str]:
        """The prompt of each of `counted`."""
        return [self.batch.group_ids[i] for i in self.counted]


class CriticPretrainer:
    """All ranks: trains the critic on one part, measures it on the other."""

    def __init__(
        self, config: VcppoConfig, share: Share, train: Part, held_out: Part, metrics: MetricsWriter | None
    ) -> None:
        self._config = config.value_pretraining
        self._seed = config.run.seed
        self._share = share
        self._train, self._held_out = train, held_out
        self._held_out_packer = Packer(held_out.batch, share)
        self._metrics = metrics
        self._bins = ValueBins.of(config)
        self.engine = make_critic_engine(
            config, "policy", self._config.learning_rate, "value_pretraining.learning_rate"
        )
        self._prompts: list[str] = []
        self._sums: list[Sums] = []  # of each measurement

    def run(self, save_best: Callable[[TrainEngine], None], stop_requested: Callable[[], bool]) -> Gate | None:
        """Train and measure until the gate is out of patience or steps; None when asked to stop."""
        gate = Gate(self._config)
        losses: list[float] = []
        members = self._draw()
        for step in range(self._config.max_steps + 1):
            watchdog.stage("value_pretraining")
            if broadcast_object(stop_requested()):
                return None
            if step > 0:
                losses.append(self._step(next(members)))
            if step % self._config.eval_every == 0 or step == self._config.max_steps:
                if gate.add(self._measure(step, losses)):
                    save_best(self.engine)
                losses = []
                if gate.out_of_patience:
                    break
        return gate

    def _draw(self) -> Iterator[list[int]]:
        """Mini-batches of trajectories without replacement; a new order each time all were used."""
        num_trajectories = len(self._train.batch)
        size = min(self._config.batch_size, num_trajectories)
        epoch = 0
        while True:
            generator = np.random.default_rng(derive_seed(self._seed, "value_pretraining", epoch))
            order = generator.permutation(num_trajectories)
            for start in range(0, num_trajectories - size + 1, size):
                yield [int(i) for i in order[start : start + size]]
            epoch += 1

    def _step(self, members: Sequence[int]) -> float:
        """One optimizer step; returns the mean loss. No value clipping: it throttles pretraining."""
        part = self._train
        num_tokens = num_trained(part.mask, part.batch.action_cu_seqlens, members)
        micros = micro_batches(part.batch, members, self._share)
        total = critic_step(self.engine, micros, part.returns, part.mask, num_tokens=num_tokens, bins=self._bins)
        return float(sum_over_ranks(np.array([total]))[0]) / num_tokens

    @property
    def judged(self) -> Figure:
        """What the gate goes by: of the best critic, without the luck of having been chosen."""
        return choose_and_measure(self._prompts, self._sums, self._seed)

    def _measure(self, step: int, losses: Sequence[float]) -> Measurement:
        part = self._held_out
        values, _ = compute_values(self.engine, self._held_out_packer)
        counted, returns = values[part.mask], part.returns[part.mask]
        quality = explained_variance(counted, returns, part.counted_cu_seqlens, part.counted_groups)
        self._prompts, sums = sums_by_prompt(counted, returns, part.counted_cu_seqlens, part.counted_groups)
        self._sums.append(sums)
        interval = measure(sums, self._seed).interval
        error = np.square(counted.astype(np.float64) - returns)
        measurement = Measurement(
            step=step,
            held_out_loss=0.5 * float(error.mean()) if len(error) else float("nan"),
            explained_variance=quality.token,
            explained_variance_sequence=quality.sequence,
            explained_variance_within_prompt=quality.within_prompt,
            train_loss=float(np.mean(losses)) if losses else None,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
        )
        self._report(measurement)
        return measurement

    def _report(self, measurement: Measurement) -> None:
        if self._metrics is None:
            return
        values = {
            "stage": "value_pretraining",
            "vp/train_loss": measurement.train_loss,
            "vp/held_out_loss": measurement.held_out_loss,
            "vp/held_out_explained_variance": measurement.explained_variance,
            "vp/held_out_explained_variance_low": measurement.low,
            "vp/held_out_explained_variance_high": measurement.high,
            "vp/held_out_explained_variance_sequence": measurement.explained_variance_sequence,
            "vp/held_out_explained_variance_within_prompt": measurement.explained_variance_within_prompt,
        }
        self._metrics.write(measurement.step, values)
        num_held_out = len(self._held_out.counted_rollouts)
        log.info(
            "value_pretraining_measured",
            num_held_out=num_held_out,
            **{k: v for k, v in asdict(measurement).items() if v is not None},
        )

"""Value pretraining: a critic that is calibrated before RL starts, and shown to be so (the paper's first cure).

    record    the frozen policy (version 0) answers num_trajectories prompts; each is written to disk once
    train     critic on Monte-Carlo returns (GAE with lambda = 1), actions only
    gate      explained variance on held-out prompts (whole groups), against Monte-Carlo returns: stop when it
              no longer rises and the held-out loss no longer falls, keep the best critic, write
              decision.json; below min_explained_variance the run stops

Recording consumes trajectories of purpose ``value_pretraining``, waits at most learner.batch_deadline_seconds for
one, and is unblocked by any append. It resumes where the file ends and needs no generators once that is
complete; training starts over after a crash (it is short). A finished stage (a passed decision and
its critic) is skipped. Everything claimed here is committed here, so RL starts from an empty buffer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import torch

from common import watchdog
from common.config import VcppoConfig
from common.errors import EXIT_REFUSED, VcppoError
from common.json_file import read_json_object
from common.metrics import MetricsWriter
from common.run_folder import CRITIC_FOLDER, DECISION_FILE, RECORD_FILE, RunFolder
from common.store import RunStore
from common.trajectory import Trajectory
from common.whole_file import write_whole
from common.whole_folder import written_whole
from learner.advantages import Truncation, place_ends
from learner.batch import Batch, Share, micro_batches
from learner.collect import PromptIssuer
from learner.engine import EngineOptions, TrainEngine, broadcast_object, rank, sum_over_ranks
from learner.explained_variance import ExplainedVariance, explained_variance
from learner.gae import monte_carlo_returns
from learner.losses import value_loss
from learner.models import CriticModel, load_critic, save_model
from learner.packing import action_slots
from learner.prompts import derive_seed
from learner.trajectory_file import TrajectoryFile
from learner.update import compute_values
from learner.value_gate import Gate, Measurement
from learner.value_recording import Recorder, record, share_record

log = structlog.get_logger(__name__)


class GateFailed(VcppoError):
    """The critic does not explain enough: RL on it would collapse as plain PPO does."""

    exit_code = EXIT_REFUSED


def is_done(folder: Path) -> bool:
    """The stage's artefacts are there: a passed decision and its critic."""
    decision = folder / DECISION_FILE
    if not decision.exists() or not (folder / CRITIC_FOLDER / "config.json").exists():
        return False
    remedy = "remove it, and value pretraining is done again from its recording"
    return read_json_object(decision, remedy).get("passed") is True


def split_held_out(
    trajectories: Sequence[Trajectory], num_held_out_groups: int, seed: int
) -> tuple[list[Trajectory], list[Trajectory]]:
    """(train, held out): the prompts with the lowest hashes are held out, each with all its responses.

    Raises:
        VcppoError: one of the sides is empty.
    """
    groups = sorted({trajectory.group_id for trajectory in trajectories}, key=lambda g: (derive_seed(seed, g), g))
    chosen = set(groups[:num_held_out_groups])
    train = [trajectory for trajectory in trajectories if trajectory.group_id not in chosen]
    held_out = [trajectory for trajectory in trajectories if trajectory.group_id in chosen]
    if not train or not held_out:
        raise VcppoError(
            f"holding out {num_held_out_groups} of {len(groups)} prompts leaves {len(train)} trajectories to train on "
            f"and {len(held_out)} to measure with: change value_pretraining.held_out_fraction or num_trajectories"
        )
    return train, held_out


# Training


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
        ends = place_ends(batch.outcome_rewards, np.zeros(len(batch), np.float32), batch.truncated, cu, truncation)
        return cls(batch, monte_carlo_returns(ends.rewards, cu, gamma=config.algorithm.gamma), ends.mask)


class CriticPretrainer:
    """All ranks: trains the critic on one part, measures it on the other."""

    def __init__(
        self, config: VcppoConfig, share: Share, train: Part, held_out: Part, metrics: MetricsWriter | None
    ) -> None:
        self._config = config.value_pretraining
        self._seed = config.run.seed
        self._share = share
        self._train, self._held_out = train, held_out
        self._metrics = metrics
        options = EngineOptions.from_config(config)
        module = load_critic(
            config.model.path,
            init="policy",
            dtype=options.torch_dtype,
            trust_remote_code=config.model.trust_remote_code,
            gradient_checkpointing=config.learner.gradient_checkpointing,
            max_tokens=config.generator.max_model_len,
        )
        self.engine = TrainEngine(module, learning_rate=self._config.learning_rate, options=options)

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
        part, cu = self._train, self._train.batch.action_cu_seqlens
        num_tokens = max(1, sum(int(part.mask[cu[i] : cu[i + 1]].sum()) for i in members))
        total = 0.0
        for packed in micro_batches(part.batch, members, self._share):
            slots = action_slots(packed, cu)
            values = self.engine.forward(packed.to(self.engine.device)).values
            loss = value_loss(
                values,
                torch.from_numpy(part.returns[slots]).to(values.device),
                num_tokens=num_tokens,
                mask=torch.from_numpy(part.mask[slots]).to(values.device),
            )
            self.engine.accumulate(loss.value)
            total += float(loss.sums["value_loss"])
        self.engine.step()
        return float(sum_over_ranks(np.array([total]))[0]) / num_tokens

    def _measure(self, step: int, losses: Sequence[float]) -> Measurement:
        part = self._held_out
        values, _ = compute_values(self.engine, part.batch, self._share)
        quality = _masked_quality(values, part)
        error = np.square(values.astype(np.float64) - part.returns)[part.mask]
        measurement = Measurement(
            step=step,
            held_out_loss=0.5 * float(error.mean()) if len(error) else float("nan"),
            explained_variance=quality.token,
            explained_variance_sequence=quality.sequence,
            explained_variance_within_prompt=quality.within_prompt,
            train_loss=float(np.mean(losses)) if losses else None,
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
            "vp/held_out_explained_variance_sequence": measurement.explained_variance_sequence,
            "vp/held_out_explained_variance_within_prompt": measurement.explained_variance_within_prompt,
        }
        self._metrics.write(measurement.step, values)
        log.info("value_pretraining_measured", **{k: v for k, v in asdict(measurement).items() if v is not None})


def _masked_quality(values: np.ndarray[Any, np.dtype[np.float32]], part: Part) -> ExplainedVariance:
    """Explained variance over the sequences that are trained on (a mask leaves out whole sequences)."""
    cu, lengths = part.batch.action_cu_seqlens, np.diff(part.batch.action_cu_seqlens)
    kept = [i for i in range(len(part.batch)) if lengths[i] and part.mask[cu[i]]]
    kept_cu = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[kept])]) if kept else np.zeros(1, np.int64)
    groups = [part.batch.group_ids[i] for i in kept]
    return explained_variance(values[part.mask], part.returns[part.mask], kept_cu, groups)


# The stage


def run_value_pretraining(
    config: VcppoConfig,
    share: Share,
    store: RunStore | None,
    issuer: PromptIssuer | None,
    metrics: MetricsWriter | None,
    stop_requested: Callable[[], bool],
) -> bool:
    """The whole stage on every rank; ``store``, ``issuer`` and ``metrics`` are rank 0's.

    Returns:
        True when the critic is there and passed; False when asked to stop before.

    Raises:
        GateFailed: names the figure and the fields to change.
    """
    folder = RunFolder(config.run.path).value_pretraining
    file = TrajectoryFile(folder / RECORD_FILE) if store is not None else None
    recorder = None
    if store is not None and issuer is not None and file is not None:
        recorder = Recorder(config, store, issuer, file)
    if not record(recorder, metrics, stop_requested):
        return False
    trajectories = share_record(file)
    num_held_out = config.value_pretraining.num_held_out_groups(config.rl.group_size)
    train, held_out = split_held_out(trajectories, num_held_out, config.run.seed)
    pretrainer = CriticPretrainer(config, share, Part.of(train, config), Part.of(held_out, config), metrics)
    gate = pretrainer.run(lambda engine: _save_critic(engine, folder / CRITIC_FOLDER), stop_requested)
    if gate is None:
        return False
    _decide(gate, folder, {"num_train": len(train), "num_held_out": len(held_out)})
    return True


def _save_critic(engine: TrainEngine, folder: Path) -> None:
    """All ranks (gathers); rank 0 replaces the folder by rename."""
    state = engine.gather_full_state_dict()
    if rank() != 0:
        return
    assert isinstance(engine.module, CriticModel)
    with written_whole(folder) as staging:
        save_model(engine.module, staging, state)


def _decide(gate: Gate, folder: Path, sizes: dict[str, int]) -> None:
    decision = {**gate.decision(), **sizes}
    if rank() == 0:
        write_whole(folder / DECISION_FILE, json.dumps(decision, indent=1))
        shown = {name: value for name, value in decision.items() if name != "history"}
        log.info("value_pretraining_decided", **shown)
    if decision["passed"]:
        return
    best = decision["best_explained_variance"]
    figure = "undefined (held-out returns do not vary)" if best is None else f"{best:.3f}"
    raise GateFailed(
        f"value pretraining: best held-out explained variance is {figure}, below "
        f"value_pretraining.min_explained_variance = {gate.config.min_explained_variance:g} "
        f"({decision['stopped_because']}); try a higher value_pretraining.learning_rate, more "
        "value_pretraining.num_trajectories or max_steps; what was recorded is kept, so a new start trains at once"
    )

"""A step that fails in training: which of its trajectories is to blame? A run does not die of it again and again.

    before a step is trained        ─▶ the store knows that it is
    it raised, or we died in it twice ─▶ at the replay each trajectory goes through the models alone, without
                                       gradients: one that raises, or is not finite, is rejected
    we died looking at one          ─▶ it is rejected unseen
    it raises again                 ─▶ the run stops, naming them all and what to do

Where all of a batch are at fault it is the weights, and none is rejected. A kill counts as no failure: only what the
step itself raised does.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.process import watchdog
from vcppo.common.records.trajectory import Float32Array
from vcppo.common.store import facts
from vcppo.learner.batching.batch import Batch, Packer, Share
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.engine.distributed import lost_peer
from vcppo.learner.engine.forward import compute_log_probs, compute_values
from vcppo.learner.rl.rank_zero import RankZero, agree

log = structlog.get_logger(__name__)

REASON = "fails in training"
_MOST_FAILURES = 2
_MOST_DEATHS = 2  # in one step, without a word: the machine may have been killed once, hardly twice
_MOST_NAMED = 64
_MAX_TEXT = 500


class _Note(NamedTuple):
    """Of a step that is in training, or was when a learner ended.

    Attributes:
        tries: times that its training was begun.
        failures: times that it raised something.
        alone: the prompt whose trajectory is being looked at; "": none is.
    """

    step: int
    tries: int = 0
    failures: int = 0
    alone: str = ""


class StepFailed(VcppoError):
    """A step fails again and again and no single trajectory is to blame: a person must look."""

    exit_code = EXIT_REFUSED


class Suspects:
    """All ranks; only rank 0 knows and rejects."""

    def __init__(
        self,
        config: VcppoConfig,
        actor: TrainEngine,
        critic: TrainEngine | None,
        share: Share,
        rank_zero: RankZero | None,
    ) -> None:
        self._temperature = config.sampling.temperature
        self._folder = config.run.path
        self._actor, self._critic, self._share = actor, critic, share
        self._rank_zero = rank_zero

    @contextmanager
    def watched(self, step: int, batch: Batch) -> Iterator[None]:
        """Around the training of a batch. Raises StepFailed at the second failure, else what was raised."""
        rank_zero = self._rank_zero
        if rank_zero is None:
            yield
            return
        note = _read(rank_zero, step)
        _write(rank_zero, note._replace(tries=note.tries + 1))
        try:
            yield
        except Exception as error:
            if isinstance(error, RuntimeError) and lost_peer(error) is not None:
                raise
            if note.failures + 1 < _MOST_FAILURES:
                _write(rank_zero, note._replace(failures=note.failures + 1))
                log.error("step_failed", step=step, error=str(error)[:_MAX_TEXT], effect="each trajectory is looked at")
                raise
            _write(rank_zero, _Note(step))  # whoever starts it again wants it tried again
            names = " ".join(batch.prompt_ids[:_MOST_NAMED])
            raise StepFailed(
                f"step {step} failed {_MOST_FAILURES} times in training ({str(error)[:_MAX_TEXT]}), and none of its "
                f"{len(batch.rollouts)} trajectories fails alone: change what the error names, or leave prompts out: "
                f"vcppo reject --run {self._folder} {names}"
            ) from error

    def without_faulty(self, step: int, batch: Batch) -> Batch:
        """The batch of a step that is replayed, less what ends the learner, which is rejected. Collective."""
        note = _Note(*agree(self._rank_zero, lambda rank_zero: tuple(_read(rank_zero, step))))
        if not (note.alone or note.failures or note.tries >= _MOST_DEATHS):
            return batch
        faults = {note.alone: "the learner ended when it was looked at alone"} if note.alone else {}
        looked_at = [each for each in batch.rollouts if each.prompt_id not in faults]
        for rollout in looked_at:
            watchdog.stage("suspects")
            if self._rank_zero is not None:
                _write(self._rank_zero, note._replace(alone=rollout.prompt_id))
            if fault := self._fault(Batch([rollout], batch.version)):
                faults[rollout.prompt_id] = fault
        if len(looked_at) > 1 and all(each.prompt_id in faults for each in looked_at):
            log.error("suspects_all_fail", step=step, reason=faults[looked_at[0].prompt_id], effect="none is rejected")
            faults = {name: why for name, why in faults.items() if name == note.alone}
        left = [each for each in batch.rollouts if each.prompt_id not in faults]
        if self._rank_zero is not None:
            self._give_up(self._rank_zero, step, faults, is_all=not left)
            _write(self._rank_zero, note._replace(alone="", tries=0, failures=0 if faults else note.failures))
            log.info("suspects_looked_at", step=step, num_trajectories=len(looked_at), num_rejected=len(faults))
        return Batch(left, batch.version)

    @staticmethod
    def _give_up(rank_zero: RankZero, step: int, faults: dict[str, str], *, is_all: bool) -> None:
        if is_all:
            facts.note_emptied_step(rank_zero.store, step)
        rank_zero.collector.quarantine.reject(faults, REASON)

    def _fault(self, alone: Batch) -> str:
        """What is wrong with the one trajectory; "" when it goes through the models. The same on all ranks."""
        packer = Packer(alone, self._share)
        try:
            numbers = {
                "values": np.concatenate(compute_values(self._critic, packer)),
                "log-probs": compute_log_probs(self._actor, packer, self._temperature).log_probs,
            }
        except Exception as error:  # noqa: BLE001  (whatever it is, this trajectory brings it about)
            return f"{type(error).__name__}: {str(error)[:_MAX_TEXT]}"
        wrong = [name for name, found in numbers.items() if not np.isfinite(found).all()]
        return f"its {' and '.join(wrong)} are not finite" if wrong else ""


def require_finite(batch: Batch, numbers: Mapping[str, Float32Array | None]) -> None:
    """Before anything is trained with them. Raises VcppoError naming the trajectories.

    Args:
        numbers: ``[A]`` each, by what they are; None: not made.
    """
    cu = batch.rollout_action_cu_seqlens
    for name, flat in numbers.items():
        if flat is None or np.isfinite(flat).all():
            continue
        finite = [bool(np.isfinite(flat[start:end]).all()) for start, end in pairwise(cu)]
        named = [prompt_id for prompt_id, is_fine in zip(batch.prompt_ids, finite, strict=True) if not is_fine]
        raise VcppoError(
            f"the {name} of {len(named)} of {len(batch.rollouts)} trajectories are not finite: {named[:_MOST_NAMED]}"
        )


def _read(rank_zero: RankZero, step: int) -> _Note:
    """What is known of earlier tries of this step."""
    return _notes(rank_zero).get(step, _Note(step))


def _write(rank_zero: RankZero, note: _Note) -> None:
    """In place of what was known of this step. Of the steps before it nothing is kept: they went well. Those after it
    wait for their replay."""
    later = [each for step, each in _notes(rank_zero).items() if step > note.step]
    facts.IN_TRAINING.write(rank_zero.store, json.dumps([note, *later]))


def _notes(rank_zero: RankZero) -> dict[int, _Note]:
    text = facts.IN_TRAINING.read(rank_zero.store)
    try:
        found = [_Note(*fields) for fields in json.loads(text or "[]")]
    except (ValueError, TypeError) as error:
        raise VcppoError(
            f"the store has {facts.IN_TRAINING.name} = {str(text)[:80]!r}, which another program wrote: start a new "
            "run under another run.name"
        ) from error
    return {note.step: note for note in found}

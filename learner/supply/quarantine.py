"""What the store hands out is looked at before it is trained: rank 0, at claim, at replay and before it is recorded.

The buffer has checked it all, but bytes change: in Redis' memory, on its disk, by whoever writes there. A trajectory
that does not match its sum, does not decode, is another prompt's, or does not fit the model's vocabulary,
``generator.max_model_len`` and ``task.max_segments`` is rejected with a dead letter. The prompt is replaced like any
other that was rejected (`vcppo.learner.supply.collect`); one that was claimed before a crash is not: its step is
trained without it (`vcppo.learner.rl.resume`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.records.trajectory import TrajectoryLimits
from vcppo.common.records.wire import WireError, decode_trajectory
from vcppo.common.store import facts
from vcppo.common.store.run_store import RunStore

log = structlog.get_logger(__name__)

REASON = "unusable trajectory"
_GONE = "payload: the store has none"


class Quarantine:
    """Keeps from the learner what would end it."""

    def __init__(self, config: VcppoConfig, store: RunStore) -> None:
        self._store = store
        self._limits = TrajectoryLimits(
            max_tokens=config.generator.max_model_len, max_segments=config.task.max_segments
        )

    def sound(self, prompt_ids: Sequence[str], if_none_is: Callable[[], None] = lambda: None) -> dict[str, bytes]:
        """The payloads that can be trained, by prompt id in the order given; the other prompts are rejected.

        Args:
            prompt_ids: buffered or claimed.
            if_none_is: called before the last of them is rejected.
        """
        stored = self._store.stored(prompt_ids)
        faults = self.faults(prompt_ids, stored)
        if len(faults) == len(prompt_ids):
            if_none_is()
        self.reject(faults, REASON)
        return {prompt_id: stored[prompt_id] for prompt_id in prompt_ids if prompt_id not in faults}

    def faults(self, prompt_ids: Sequence[str], stored: Mapping[str, bytes]) -> dict[str, str]:
        """What is wrong, by prompt id, of those that can't be trained. Nothing is rejected."""
        self._limits = self._limits.with_vocabulary(lambda: facts.VOCABULARY_SIZE.read(self._store))
        found: dict[str, str] = {}
        for prompt_id in prompt_ids:
            try:
                self._check(prompt_id, stored.get(prompt_id))
            except WireError as error:
                found[prompt_id] = str(error)
        return found

    def reject(self, faults: Mapping[str, str], reason: str) -> None:
        """Give these prompts up, each with a dead letter and a line that says what is wrong with it."""
        for prompt_id, fault in faults.items():
            log.error("trajectory_quarantined", prompt_id=prompt_id, reason=fault, effect="the prompt is rejected")
            self._store.reject(prompt_id, reason, detail=fault)

    def _check(self, prompt_id: str, payload: bytes | None) -> None:
        if payload is None:
            raise WireError(_GONE)
        found = decode_trajectory(payload, self._limits).prompt_id
        if found != prompt_id:
            raise WireError(f"prompt_id: {found!r} is stored as {prompt_id!r}")

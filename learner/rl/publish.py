"""Bringing every generator to the present weights, proved by the task's own prompts."""

from __future__ import annotations

from typing import Protocol

from vcppo.common.config import VcppoConfig
from vcppo.learner.engine.deepspeed_engine import TrainEngine
from vcppo.learner.rl.phases import Phases
from vcppo.learner.rl.rank_zero import RankZero, agree
from vcppo.learner.weights.broadcaster import BroadcastReport
from vcppo.learner.weights.canary import CanaryProbe
from vcppo.learner.weights.canary_probe import make_probe, probe_tokens


class Broadcaster(Protocol):
    """What is needed of `vcppo.learner.weights.broadcaster.WeightBroadcaster`."""

    def broadcast(self, policy_version: int, canary: CanaryProbe | None = None) -> BroadcastReport:
        """Send the actor's weights as this version; every rank must call it.

        `canary` is checked at each generator after it.
        """

    def out_of_sync(self, policy_version: int) -> list[str]:
        """Generators that do not have this version."""

    def close(self) -> None:
        """Leave the group of generators."""


class Publisher:
    """All ranks. The probe of a version is made once, however often it is sent."""

    def __init__(
        self, config: VcppoConfig, actor: TrainEngine, broadcaster: Broadcaster, rank_zero: RankZero | None
    ) -> None:
        self._config, self._actor = config, actor
        self._broadcaster, self._rank_zero = broadcaster, rank_zero
        self._tokens: list[list[int]] | None = None
        self._probe: CanaryProbe | None = None
        self._probed_version = -1

    def publish(self, version: int, phases: Phases | None = None) -> None:
        """Send the weights as ``version``; notes ``broadcast`` and ``pause`` in `phases`.

        Raises:
            CanaryError: no generator runs what it was sent.
        """
        phases = phases or Phases()
        with phases.phase("broadcast"):
            if self._tokens is None:
                self._tokens = agree(self._rank_zero, lambda it: probe_tokens(it.issuer.source, self._config))
            if self._probed_version != version:
                self._probe = make_probe(self._actor, self._tokens or [], self._config)
                self._probed_version = version
            report = self._broadcaster.broadcast(version, self._probe)
        phases.seconds["pause"] = report.pause_seconds

    def out_of_sync(self, version: int) -> list[str]:
        """Generators that lag behind; rank 0."""
        return self._broadcaster.out_of_sync(version)

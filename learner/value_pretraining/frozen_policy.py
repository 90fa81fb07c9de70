"""Version 0, the policy at model.path, sent to generators before there is an actor to send it.

Generators start without the right weights (generator.initial_weights). While value pretraining records, no actor is in
memory, and none is needed: rank 0 alone loads the policy, when the first generator asks, and sends it. The other ranks
have nothing to gather and walk nothing.

    consumes     membership
    waits for    each generator's answer, at most broadcast.deadline_seconds
    unblocked by the answers, the first failure
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, Protocol

import structlog
import torch

from vcppo.common.config import VcppoConfig
from vcppo.common.process import watchdog
from vcppo.learner.engine.distributed import choose_device, rank
from vcppo.learner.export import make_policy
from vcppo.learner.models.models import PolicyModel
from vcppo.learner.models.wire_weights import ParameterInfo, WireWeights
from vcppo.learner.supply.prompts import PromptSource
from vcppo.learner.weights.canary import CanaryProbe
from vcppo.learner.weights.canary_probe import make_probe, probe_tokens

log = structlog.get_logger(__name__)

SYNC_CHECK_SECONDS = 2.0


class FrozenPolicy:
    """A `weights.broadcaster.WeightEngine` over the policy as it is at model.path; loaded at first use."""

    def __init__(self, config: VcppoConfig) -> None:
        self.device = choose_device(config.learner.device)
        self._config = config
        self._module: PolicyModel | None = None
        self._wire: WireWeights | None = None

    @property
    def module(self) -> PolicyModel:
        """The starting policy, loaded at the first use and in eval mode; `release` frees it."""
        if self._module is None:
            watchdog.stage("load")
            self._module = make_policy(self._config).to(self.device).eval()
        return self._module

    @torch.no_grad()
    def infer(self, *arguments: Any) -> Any:
        """The policy's forward. Local."""
        return self.module(*arguments)

    def weight_metadata(self) -> list[ParameterInfo]:
        """On rank 0 the weights in the order of `weight_source`; elsewhere none."""
        return self._weights().infos if rank() == 0 else []

    def weight_source(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(Checkpoint's name, tensor ``[...]``) on rank 0; nothing elsewhere. No collective."""
        return self._weights().walk(lambda _: nullcontext()) if rank() == 0 else iter(())

    def release(self) -> None:
        """Free the memory; the next use loads it again."""
        self._module = self._wire = None

    def _weights(self) -> WireWeights:
        if self._wire is None:
            self._wire = WireWeights(self.module.hf_model)
        return self._wire


class VersionZeroBroadcaster(Protocol):
    """What is needed of `vcppo.learner.weights.broadcaster.WeightBroadcaster`."""

    def broadcast(self, policy_version: int, canary: CanaryProbe | None = None) -> Any:
        """See `WeightBroadcaster.broadcast`; the version is 0 here."""

    def out_of_sync(self, policy_version: int) -> list[str]:
        """Generators that do not have this version."""


class VersionZero:
    """Every rank makes one; rank 0 has the source of prompts and asks `is_wanted`."""

    def __init__(
        self,
        config: VcppoConfig,
        policy: FrozenPolicy,
        broadcaster: VersionZeroBroadcaster,
        source: PromptSource | None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._broadcaster = broadcaster
        self._source = source
        self._next_check = 0.0
        self._probe: CanaryProbe | None = None

    def is_wanted(self) -> bool:
        """A generator does not run version 0; looked for every `SYNC_CHECK_SECONDS`. Rank 0 only."""
        if time.monotonic() < self._next_check:
            return False
        self._next_check = time.monotonic() + SYNC_CHECK_SECONDS
        lagging = self._broadcaster.out_of_sync(0)
        if lagging:
            log.info("generators_out_of_sync", generators=lagging, policy_version=0)
        return bool(lagging)

    def send(self) -> None:
        """Broadcast version 0 to all generators. Collective. Raises as `WeightBroadcaster.broadcast` does."""
        if self._source is not None and self._probe is None:
            self._probe = make_probe(self._policy, probe_tokens(self._source, self._config), self._config)
        self._broadcaster.broadcast(0, self._probe)
        self._next_check = 0.0

    def release(self) -> None:
        """Recording is over: the policy need not stay in memory."""
        self._policy.release()

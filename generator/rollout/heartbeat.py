"""A generator's heartbeat: it renews its leases and its entry in the store, and writes its metrics.

A prompt whose lease is gone while it is still in flight (expired, or dropped by the learner) is abandoned at once.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass

import structlog

from vcppo.common.process import watchdog
from vcppo.common.store.run_store import Fenced, Member, StoreError
from vcppo.common.transport import ControlServer
from vcppo.generator.rollout.control import WeightControl
from vcppo.generator.rollout.in_flight import InFlight
from vcppo.generator.rollout.liveness import Liveness
from vcppo.generator.rollout.parts import Generator
from vcppo.generator.vllm_engine.engine import UNSYNCED, EngineError

log = structlog.get_logger(__name__)


@dataclass
class Counters:
    """What happened since the last metrics line."""

    since: float
    num_tokens: int = 0
    num_rollouts: int = 0
    queue_wait: float = 0.0  # seconds with free places and no prompt to lease


class Heartbeat:
    """Every generator.heartbeat_seconds, and whenever the weights change.

    Attributes:
        counters: the worker's to count in.
    """

    def __init__(
        self,
        generator: Generator,
        control: WeightControl,
        server: ControlServer,
        in_flight: InFlight,
        liveness: Liveness,
    ) -> None:
        self.counters = Counters(time.monotonic())
        self._config = generator.config
        self._id = generator.id
        self._engine = generator.engine
        self._control = control
        self._server = server
        self._store = generator.store
        self._sender = generator.sender
        self._metrics = generator.metrics
        self._player = generator.player
        self._rewards = generator.rewards
        self._in_flight = in_flight
        self._liveness = liveness
        self._num_beats = 0

    async def run(self) -> None:
        """Until cancelled.

        Raises:
            EngineError: vLLM died.
            Fenced: another process generates under this name, or the store is another one.
            StoreError: the store stayed away for longer than redis.patience_seconds.
        """
        answered = time.monotonic()
        while True:
            self._control.changed.clear()
            try:
                await self._beat()
                answered = time.monotonic()
            except Fenced:
                raise
            except StoreError as error:
                silent = time.monotonic() - answered
                log.warning("store_unreachable", seconds=round(silent, 1), error=str(error))
                if silent > self._config.redis.patience_seconds:
                    raise
            await self._control.wait_for_change(self._config.generator.heartbeat_seconds)

    async def _beat(self) -> None:
        if self._engine.is_dead:
            raise EngineError("vLLM's engine died: see its log lines above")
        watchdog.stage("heartbeat", loop="heartbeat", waiting_for=["redis"])
        away = self._rewards is not None and self._rewards.away_seconds > 0
        self._liveness.look(len(self._in_flight), gate_open=self._control.gate.may_send, rewards_away=away)
        seconds = 3 * self._config.generator.heartbeat_seconds
        learner = await asyncio.to_thread(self._store.register_member, self._member(), seconds)
        self._server.callers.heard_of(learner)
        await self._renew_leases()
        self._write_metrics()

    async def _renew_leases(self) -> None:
        leased = self._in_flight.leased
        if not leased:
            return
        seconds = self._config.generator.lease_seconds
        gone = await asyncio.to_thread(self._store.renew_leases, self._id, sorted(leased), seconds)
        leased.difference_update(gone)
        lost = await self._in_flight.cancel(gone)
        if lost:
            log.warning("leases_lost", prompt_ids=lost)

    def _member(self) -> Member:
        return Member(
            id=self._id,
            role="generator",
            control_endpoint=self._server.endpoint,
            policy_version=self._control.policy_version,
            epoch=self._control.epoch,
            info={
                "num_workers": self._config.generator.tensor_parallel_size,
                "pid": os.getpid(),
                "incarnation": self._control.incarnation,
            },
        )

    def write_last(self) -> None:
        """Into the metrics, when nothing more is rolled out: what was done since the last beat."""
        self._write_metrics()

    def _write_metrics(self) -> None:
        counters, now = self.counters, time.monotonic()
        self.counters = Counters(now)
        self._num_beats += 1
        version = self._control.policy_version
        values: dict[str, float | list[float] | None] = {
            "generator/tokens": float(counters.num_tokens),
            "generator/tokens_per_second": counters.num_tokens / max(now - counters.since, 1e-9),
            "generator/rollouts": float(counters.num_rollouts),
            "generator/in_flight": float(self._in_flight.num_generating),
            "generator/queue_wait": counters.queue_wait,
            "generator/paused": self._control.total_paused_seconds,
            "generator/unacked": float(self._sender.num_unacked),
            "generator/policy_version": None if version == UNSYNCED else float(version),
        }
        if self._player is not None:
            taken = self._player.take_counts()
            values |= {
                "generator/agent_requests": float(taken.requests),
                "generator/segments": float(taken.segments),
                "generator/tool_calls": float(taken.tools.calls),
                "generator/tool_errors": float(taken.tools.errors),
                "generator/tool_seconds": taken.tools.seconds,
                "generator/environment_calls": float(taken.calls),
                "generator/environment_errors": float(taken.errors),
                "generator/environment_seconds": taken.seconds,
            }
        if self._rewards is not None:
            values |= self._rewards.take_figures()
        self._metrics.write(self._num_beats, values)

"""The rollout worker: leases prompts, keeps a bounded number in flight, verifies, sends.

    lease ─▶ engine.generate ─▶ verify ─▶ gate ─▶ encode ─▶ TrajectorySender
      ▲ waits for: a free place, the gate (weights in order), room in the spool, an issued prompt

Side by side: *lease* fills free places; one task per prompt takes it through; `vcppo.generator.rollout.heartbeat`
renews leases. A place is a sequence in vLLM: it is free again once the rollout is there, so judging and sending cost no
tokens; as many prompts as there are places may wait for these. A few prompts are leased ahead, so that a freed place
need not wait for the store. A lease is kept until the store says it is no longer ours, which is so once the trajectory
is appended: between send and append nobody else can take the prompt.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from vcppo.common.errors import EXIT_REFUSED, VcppoError
from vcppo.common.process import watchdog
from vcppo.common.records.ids import make_trajectory_id
from vcppo.common.records.trajectory import Prompt
from vcppo.common.records.wire import encode_trajectory
from vcppo.common.rewards.reward_rule import Score
from vcppo.common.store.run_store import Fenced, StoreError
from vcppo.common.tasks import decode_response
from vcppo.common.transport import ControlServer
from vcppo.generator.reward_sources.items import NoReward, SourceAway
from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.control import WeightControl
from vcppo.generator.rollout.finished import Finished, one_turn, tool_figures
from vcppo.generator.rollout.heartbeat import Heartbeat
from vcppo.generator.rollout.in_flight import InFlight
from vcppo.generator.rollout.liveness import Liveness
from vcppo.generator.rollout.parts import Generator
from vcppo.generator.turns.environment_pool import RolloutLost
from vcppo.generator.turns.play import NotBegun
from vcppo.generator.verifying.scorer import Scorer
from vcppo.generator.vllm_engine.engine import UNSYNCED, EngineError, Rollout
from vcppo.generator.vllm_engine.kept_turns import Turns
from vcppo.generator.vllm_engine.stepper import Hear
from vcppo.generator.vllm_engine.stop_strings import judged_text

log = structlog.get_logger(__name__)

_LEASE_WAIT_SECONDS = 1.0
_SPOOL_POLL_SECONDS = 0.2


class Dismissed(VcppoError):
    """The learner does not want this generator any more: a new start would end the same way."""

    exit_code = EXIT_REFUSED


class RolloutWorker:
    """Runs until `stop` is called or something that can't be mended fails.

    Attributes:
        control: the state of its weights, and the calls that change it.
    """

    def __init__(self, generator: Generator, server: ControlServer) -> None:
        self._config = config = generator.config
        self._id = generator.id
        self._engine = generator.engine
        self._store = generator.store
        self._sender = generator.sender
        self._scorer = Scorer(config, generator.verifiers, generator.rewards)
        self._benchmarks = {name: Scorer.of_benchmark(config, name, it) for name, it in generator.benchmarks.items()}
        self._tokenizer = generator.tokenizer
        self._player = generator.player
        self.control = WeightControl(
            generator.engine,
            generator.id,
            config.broadcast.deadline_seconds,
            limits=CallLimits.of(config, generator.engine.vocabulary, generator.engine.backend),
            drop_in_flight=self.drop_in_flight,
            end=self.dismiss,
        )
        self._places = asyncio.Semaphore(config.generator.max_in_flight)
        self._num_ahead = config.generator.num_ahead
        self._stopping = asyncio.Event()
        self._leasing: asyncio.Future[list[Prompt]] | None = None
        self._failure: Exception | None = None
        self._liveness = Liveness()
        self._in_flight = InFlight(on_end=self._liveness.progress)
        self._heartbeat = Heartbeat(generator, self.control, server, self._in_flight, self._liveness)
        # Ids of two incarnations of one generator must differ: the same prompt may come back after a crash.
        self._incarnation = f"{os.getpid():x}{time.time_ns() & 0xFFFFFF:06x}"

    def stop(self) -> None:
        """Lease no more, hand back what is unfinished, drain the sender; `run` then returns."""
        self._stopping.set()

    def dismiss(self, reason: str) -> None:
        """As `stop`; `run` then raises `Dismissed`."""
        self._failure = Dismissed(f"dismissed by the learner: {reason}")
        self._stopping.set()

    async def run(self) -> None:
        """Until it was stopped or dismissed.

        Raises:
            Fenced: another process acts under this name, or the store is another one.
            VcppoError: vLLM died, or the store stayed away for longer than redis.patience_seconds.
        """
        loops = [asyncio.create_task(loop()) for loop in (self._lease_loop, self._heartbeat.run)]
        loops.append(asyncio.create_task(self.control.watch_silence()))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([*loops, stopping], return_when=asyncio.FIRST_COMPLETED)
            for loop in loops:
                if loop.done():
                    loop.result()  # a loop ends by its error only
        except Fenced as error:
            self._failure = error
        finally:
            for task in [*loops, stopping]:
                task.cancel()
            await asyncio.gather(*loops, stopping, return_exceptions=True)
            watchdog.leave("heartbeat")
            self._liveness.end()
            watchdog.stage("leave", waiting_for=["buffer", "redis"])
            await self._leave()
            self._heartbeat.write_last()
        if self._failure is not None:
            raise self._failure

    # Leasing

    async def _lease_loop(self) -> None:
        while True:
            await self.control.gate.until_may_begin()
            await self._scorer.until_reachable()
            most = self._config.generator.max_in_flight
            free = min(most + self._num_ahead - self._in_flight.num_generating, 2 * most - len(self._in_flight))
            if free <= self._num_ahead // 2:  # one trip to the store for several
                self._in_flight.place_freed.clear()
                await self._in_flight.place_freed.wait()
            elif self._sender.is_full:
                await self._wait_for_spool()
            else:
                await self._lease_patiently(free)

    async def _lease_patiently(self, free: int) -> None:
        """A store that is away is the heartbeat's to judge: it gives up after redis.patience_seconds."""
        try:
            await self._lease(free)
        except Fenced:
            raise
        except StoreError as error:
            log.warning("lease_failed", error=str(error))
            await asyncio.sleep(_LEASE_WAIT_SECONDS)

    async def _lease(self, free: int) -> None:
        began = time.monotonic()
        seconds = self._config.generator.lease_seconds
        call = asyncio.to_thread(self._store.lease, self._id, free, seconds, _LEASE_WAIT_SECONDS)
        # Shielded: if we are stopped meanwhile the thread still leases, and what it got is handed back in _leave.
        self._leasing = asyncio.ensure_future(call)
        prompts = await asyncio.shield(self._leasing)
        self._leasing = None
        if not prompts:
            self._heartbeat.counters.queue_wait += time.monotonic() - began
        if await self._missed_a_version(prompts):
            return
        for prompt in prompts:
            self._in_flight.start(prompt.id, self._take_through(prompt))

    async def _missed_a_version(self, prompts: list[Prompt]) -> bool:
        """Prompts issued for weights we were never sent: hand them back and ask for an update, unless we have.

        The learner issues at a version only after everybody in its group runs it, so we were not in it (frozen, or cut
        off from the store). What older weights make of such a prompt could be too stale when it is trained.
        """
        version = self.control.policy_version
        newest = max((prompt.issue_version for prompt in prompts), default=UNSYNCED)
        if newest <= version:
            return False
        if version != UNSYNCED:
            self.control.need_sync(f"a prompt was issued at version {newest}, which this generator was never sent")
        await self._return_leases([prompt.id for prompt in prompts])
        return True

    async def _wait_for_spool(self) -> None:
        log.warning("spool_full", num_unacked=self._sender.num_unacked, waiting_for="buffer")
        while self._sender.is_full:
            await asyncio.sleep(_SPOOL_POLL_SECONDS)  # the sender's thread has no asyncio event to wait on
        log.info("spool_has_room", num_unacked=self._sender.num_unacked)

    # One prompt

    async def _take_through(self, prompt: Prompt) -> None:
        try:
            await self._roll_out(prompt)
        except Exception as error:  # noqa: BLE001  (no task may end unheard: run() raises it)
            self._failure = error
            self._stopping.set()

    async def _generate(self, prompt: Prompt, hear: Hear | None = None, turns: Turns | None = None) -> Rollout | None:
        """The rollout; None when vLLM refuses this prompt, which is then rejected for good."""
        try:
            async with self._places:
                await self.control.gate.until_may_begin()  # an update may have begun while the lease was on its way
                return await self._engine.generate(prompt, hear, turns=turns)
        except EngineError as error:
            if self._engine.is_dead:
                raise
            await self._reject(prompt, error)
            return None

    async def _roll_out(self, prompt: Prompt) -> None:
        try:
            is_played = self._player is not None and prompt.task not in self._benchmarks
            finished = await (self._turns(prompt) if is_played else self._one_turn(prompt))
        except RolloutLost:
            await self._return_leases([prompt.id])
            return
        except SourceAway as error:
            log.warning("prompt_handed_back", prompt_id=prompt.id, reason=str(error))
            await self._return_leases([prompt.id])
            return
        except (NoReward, NotBegun) as error:
            await self._reject(prompt, error)
            return
        if finished is None:
            return
        await self.control.gate.until_may_send()  # a canary may still find the weights wrong
        name = make_trajectory_id(prompt.id, self._id, self._incarnation)
        made = finished.trajectory(prompt, name, self._id)
        self._sender.send(name, encode_trajectory(made))
        self._heartbeat.counters.num_tokens += made.num_actions
        self._heartbeat.counters.num_rollouts += 1
        log.debug("trajectory_sent", trajectory_id=name, outcome=finished.score.outcome)

    async def _one_turn(self, prompt: Prompt) -> Finished | None:
        """None: it was refused.

        Raises:
            RolloutLost: it was broken off.
            SourceAway, NoReward: it can't be scored now, or ever.
        """
        rollout = await self._generate(prompt)
        self._in_flight.free_place(asyncio.current_task())
        if rollout is None:
            return None
        if rollout.finish_reason == "abort" or not len(rollout.token_ids):
            raise RolloutLost
        began = time.monotonic()
        score = await self._score(prompt, rollout)
        timings = {"generate": rollout.seconds, "verify": time.monotonic() - began}
        return Finished(one_turn(rollout), score, timings)

    async def _turns(self, prompt: Prompt) -> Finished | None:
        """As `_one_turn`. It has a place in vLLM while the policy writes, and none while the environment answers.

        Raises:
            RolloutLost, NotBegun: see `Player.play`.
            SourceAway, NoReward: it can't be scored now, or ever.
        """

        async def sample(turn: Prompt, /, hear: Hear | None = None) -> Rollout | None:
            self._in_flight.take_place(asyncio.current_task())
            try:
                return await self._generate(turn, hear, turns)
            finally:
                self._in_flight.free_place(asyncio.current_task())
                self._liveness.progress()

        assert self._player is not None
        with self._engine.turns() as turns:
            played = await self._player.play(prompt, sample)
        if played is None:
            return None
        made, began, longest = played.transcript, time.monotonic(), played.longest_response
        score = await self._scorer.score_rollout(prompt.id, prompt.answer, played.verdict, made, longest, played.told)
        timings = {"generate": played.generate_seconds, "environment": played.environment_seconds}
        if played.told is not None:
            timings["verify"] = played.grade_seconds + time.monotonic() - began
        return Finished(made, score, timings | tool_figures(played.tools), played.prompt_token_ids, played.segments)

    async def _score(self, prompt: Prompt, rollout: Rollout) -> Score:
        text = decode_response(self._tokenizer, rollout.token_ids, rollout.end_ids)
        judged = judged_text(text, rollout.stop_string, self._config.sampling.stop_in_text)
        scorer = self._benchmarks.get(prompt.task, self._scorer)
        return await scorer.score(
            prompt.answer, judged, rollout.finish_reason, len(rollout.token_ids),
            lambda: (prompt.id, str(self._tokenizer.decode(prompt.token_ids.tolist()))),
        )  # fmt: skip

    async def _reject(self, prompt: Prompt, error: VcppoError) -> None:
        """For good: it would end the same way again."""
        await asyncio.to_thread(self._store.reject, prompt.id, str(error))
        self._in_flight.leased.discard(prompt.id)
        log.warning("prompt_rejected", prompt_id=prompt.id, reason=str(error))

    async def drop_in_flight(self) -> None:
        """Cancel every rollout and hand its prompt back: what is in flight can't be trusted."""
        ids = await self._in_flight.cancel(self._in_flight.prompt_ids)
        await self._return_leases(ids)
        log.warning("in_flight_dropped", count=len(ids))

    async def _return_leases(self, prompt_ids: list[str]) -> None:
        self._in_flight.leased.difference_update(prompt_ids)
        await asyncio.to_thread(self._store.return_leases, self._id, prompt_ids)

    # Leaving

    async def _leave(self) -> None:
        """Hand back unfinished prompts at once, give the sender time to be acked, unregister."""
        unfinished = await self._in_flight.cancel(self._in_flight.prompt_ids)
        if isinstance(self._failure, Fenced):  # nothing here is ours any more
            return
        if self._leasing is not None:
            await _tolerate("lease", lambda: self._leftover(unfinished))
        await _tolerate("return_leases", lambda: self._return_leases(unfinished))
        log.info("generator_leaving", leases_returned=len(unfinished), num_unacked=self._sender.num_unacked)
        deadline = self._config.launcher.stop_deadline_seconds / 2
        if not await asyncio.to_thread(self._sender.drain, deadline):
            log.warning("unacked_left_in_spool", num_unacked=self._sender.num_unacked, waited_for="buffer")
        await _tolerate("unregister", lambda: asyncio.to_thread(self._store.unregister_member, self._id))

    async def _leftover(self, unfinished: list[str]) -> None:
        assert self._leasing is not None
        unfinished.extend(prompt.id for prompt in await self._leasing)


async def _tolerate(what: str, call: Callable[[], Awaitable[Any]]) -> None:
    """On the way out a store that is gone is worth a line, not a failure: leases expire by themselves."""
    try:
        await call()
    except VcppoError as error:
        log.warning("leaving_failed", step=what, error=str(error))

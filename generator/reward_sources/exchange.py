"""Between responses that want a number and requests that get it: batches, limits, tries, and waiting for a source.

    ask ─▶ queue ─▶ batch ─▶ [breaker] ─▶ request ─▶ said ─▶ accept ─▶ the caller
             ▲                              │ failed, or no reward: after a back-off
             └──────────────────────────────┘

A request that fails is nobody's verdict: its items wait. While the breaker is open nothing is sent but probes, and who
has waited `patience_seconds` for a source that is away gets `SourceAway`. A source that answers, but not with a reward,
uses up an item's `answer_tries`; then it gets `NoReward`. Where a request could be the fault of one item in it (status
400, 413, 422 or 500, or no JSON), its items are asked about in halves, until the one is alone. That counts as one of
its tries only when the source has answered something else in between: a source that fails at everything is away.

A probe asks again about the last response that was graded, where there is one: whether the source is back must not
depend on an item that it may never answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import structlog

from vcppo.common.config import RewardSourceConfig
from vcppo.generator.reward_sources.breaker import Breaker, BreakerState
from vcppo.generator.reward_sources.items import (
    Answers,
    Asked,
    Asker,
    NoReward,
    RequestFailed,
    Said,
    SourceAway,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")
_LONGEST_BACK_OFF = 30.0
_POLL_SECONDS = 0.1


@dataclass
class Figures:
    """What happened since they were last taken."""

    requests: int = 0
    answered: int = 0
    failed_requests: int = 0
    bad_answers: int = 0
    rejected: int = 0
    handed_back: int = 0
    seconds: float = 0.0  # of requests that were answered


class Batching:
    """How many items go into one request, and how long it waits for them."""

    def __init__(self, size: int = 1, wait_seconds: float = 0.0) -> None:
        self.size, self.wait_seconds = size, wait_seconds


class _Waiting(Generic[T]):
    """An item in the queue or in a request."""

    def __init__(self, item: Asked, accept: Callable[[Said], T], most: int, num_good: int, now: float) -> None:
        self.item, self.accept, self.since = item, accept, now
        self.future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self.most = most  # items of a request that it may be in
        self.failures = 0  # requests and answers, for the back-off
        self.bad = 0  # of `answer_tries`
        self.num_good = num_good  # answers the source had given at its last failure


class Exchange(Generic[T]):
    """One source, asked by many. Make it, ``await ask(...)``, ``await close()``."""

    def __init__(
        self,
        name: str,
        config: RewardSourceConfig,
        asker: Asker,
        batching: Batching | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.figures = Figures()
        self._name, self._config, self._asker, self._clock = name, config, asker, clock
        self._batching = batching or Batching()
        self._queue: deque[_Waiting[T]] = deque()
        self._changed = asyncio.Event()
        self._slots = asyncio.Semaphore(config.max_concurrency)
        self._breaker = Breaker(config.breaker_failures, config.breaker_seconds)
        self._num_waiting = self._num_good = 0
        self._known_good: Asked | None = None
        self._dispatcher: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[None]] = set()

    @property
    def num_waiting(self) -> int:
        """Responses that wait for their number."""
        return self._num_waiting

    @property
    def away_seconds(self) -> float:
        """Since its first failed request, while it counts as away; 0: it does not."""
        breaker = self._breaker
        return 0.0 if breaker.opened_at is None else self._clock() - (breaker.failing_since or breaker.opened_at)

    async def ask(self, item: Asked, accept: Callable[[Said], T]) -> T:
        """What `accept` makes of what the source says; its ValueError: that is no reward.

        Raises:
            SourceAway: the source was away for `patience_seconds`.
            NoReward: it answered `answer_tries` times, never with a reward.
            VcppoError: it can't be asked at all.
        """
        waiting = _Waiting(item, accept, self._batching.size, self._num_good, self._clock())
        self._put(waiting)
        self._num_waiting += 1
        try:
            while True:
                await self._until_settled(waiting)
                if waiting.future.done():
                    return waiting.future.result()
                if self._patience_left(waiting) <= 0:
                    self.figures.handed_back += 1
                    raise SourceAway(
                        f"{self._name}.url = {self._config.url} was away for longer than {self._name}.patience_seconds"
                        f" = {self._config.patience_seconds:g}: look after it; prompts are issued again"
                    )
        finally:
            self._num_waiting -= 1
            waiting.future.cancel()

    async def until_reachable(self) -> None:
        """Wait while the source counts as away and a probe can tell whether it is back."""
        while self._breaker.opened_at is not None and not self._needs_a_new_item:
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """End what is under way, and the connections."""
        tasks = [*self._requests, *([self._dispatcher] if self._dispatcher is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._asker.close()

    @property
    def _needs_a_new_item(self) -> bool:
        """It may be back, and there is nothing to probe it with."""
        half_open = self._breaker.state(self._clock()) is BreakerState.HALF_OPEN
        return half_open and self._known_good is None and not self._num_waiting

    async def _until_settled(self, waiting: _Waiting[T]) -> None:
        """Or until its patience may be over."""
        assert self._dispatcher is not None
        seconds = max(self._patience_left(waiting), 0.01)
        both: set[asyncio.Future[T] | asyncio.Task[None]] = {waiting.future, self._dispatcher}
        await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if self._dispatcher.done():
            self._dispatcher.result()  # it never ends but by an error

    def _patience_left(self, waiting: _Waiting[T]) -> float:
        failing = self._breaker.failing_since
        began = self._clock() if failing is None else max(failing, waiting.since)
        return began + self._config.patience_seconds - self._clock()

    def _put(self, waiting: _Waiting[T]) -> None:
        self._queue.append(waiting)
        self._changed.set()
        if self._dispatcher is None:
            self._dispatcher = asyncio.create_task(self._dispatch())

    # Sending

    async def _dispatch(self) -> None:
        while True:
            await self._slots.acquire()
            probe, batch = await self._next_batch()
            self._breaker = self._breaker.sent(self._clock())
            task = asyncio.create_task(self._send(batch, probe=probe))
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)

    async def _next_batch(self) -> tuple[bool, list[_Waiting[T]]]:
        """What goes next, as soon as it may: (whether it is a probe, its items; none: the item known to be good)."""
        while True:
            self._changed.clear()
            while self._queue and self._queue[0].future.done():  # nobody waits for it any more
                self._queue.popleft()
            now = self._clock()
            state = self._breaker.state(now)
            if state is not BreakerState.CLOSED:
                if self._breaker.may_send(now) and (self._known_good is not None or self._queue):
                    return True, [] if self._known_good is not None else [self._queue.popleft()]
                await self._until_changed(_POLL_SECONDS)
            elif not self._queue:
                await self._until_changed(None)
            elif (wait := self._queue[0].since + self._batching.wait_seconds - now) > 0 and not self._is_full:
                await self._until_changed(wait)
            elif batch := self._take():
                return False, batch

    @property
    def _is_full(self) -> bool:
        return len(self._queue) >= self._queue[0].most

    async def _until_changed(self, seconds: float | None) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()

    def _take(self) -> list[_Waiting[T]]:
        batch: list[_Waiting[T]] = []
        while self._queue and len(batch) < min(each.most for each in [*batch, self._queue[0]]):
            waiting = self._queue.popleft()
            if not waiting.future.done():
                batch.append(waiting)
        return batch

    async def _send(self, batch: Sequence[_Waiting[T]], *, probe: bool) -> None:
        """One request, and what follows from it; ends after the back-off of what has to be asked again."""
        known_good = [] if self._known_good is None else [self._known_good]
        items = [waiting.item for waiting in batch] or known_good
        began = self._clock()
        self.figures.requests += 1
        try:
            answers = await self._asker.request(items)
        except RequestFailed as error:
            self._failed(str(error), probe=probe)
            again = [waiting for waiting in batch if self._asked_again(waiting, error, len(batch))]
        except Exception as error:  # noqa: BLE001  (nobody may wait for ever: whoever asked raises it)
            for waiting in batch:
                _fail(waiting, error)
            self._breaker = self._breaker.failed(self._clock(), probe=probe)
            return
        else:
            self.figures.answered += 1
            self.figures.seconds += self._clock() - began
            again = self._answered(batch, answers, probe=probe)
        finally:
            self._slots.release()
        await self._again(again)

    async def _again(self, again: Sequence[_Waiting[T]]) -> None:
        if not again:
            return
        most = max(waiting.failures for waiting in again)
        seconds = min(self._config.back_off_seconds * 2.0 ** min(most - 1, 30), _LONGEST_BACK_OFF)
        await asyncio.sleep(seconds * random.uniform(0.5, 1.0))
        for waiting in again:
            self._put(waiting)

    # What came back

    def _answered(self, batch: Sequence[_Waiting[T]], answers: Answers, *, probe: bool) -> list[_Waiting[T]]:
        """Give each its answer; those to be asked again."""
        faults = [(waiting, fault) for waiting in batch if (fault := self._settle(waiting, answers)) is not None]
        self.figures.bad_answers += len(faults) + answers.strange
        if answers.strange:
            log.warning("reward_source_strange", source=self._name, url=self._config.url, count=answers.strange,
                        effect="answers of items that were not asked about are not used")  # fmt: skip
        num_good = len(batch) - len(faults) if batch else len(answers.said)
        if num_good:
            self._num_good += num_good
            self._succeeded()
        else:
            self._failed(faults[0][1] if faults else "the probe is not answered with a number", probe=probe)
        return [waiting for waiting, fault in faults if self._bad_answer(waiting, fault)]

    def _settle(self, waiting: _Waiting[T], answers: Answers) -> str | None:
        """Give an item what was said of it; why that is no reward, if so."""
        name = waiting.item.id
        if name not in answers.said:
            return answers.faults.get(name, "it is not answered")
        try:
            found = waiting.accept(answers.said[name])
        except ValueError as error:
            return str(error)
        self._known_good = waiting.item
        if not waiting.future.done():
            waiting.future.set_result(found)
        return None

    def _bad_answer(self, waiting: _Waiting[T], fault: str) -> bool:
        """One of an item's tries is used up; whether it has another."""
        waiting.bad += 1
        waiting.failures += 1
        waiting.num_good = self._num_good
        if waiting.bad < self._config.answer_tries:
            return True
        self.figures.rejected += 1
        _fail(waiting, NoReward(f"{self._name}: asked {waiting.bad} times, no reward: {fault}"))
        return False

    def _asked_again(self, waiting: _Waiting[T], error: RequestFailed, size: int) -> bool:
        """After a failed request of `size` items."""
        if not error.by_items:
            waiting.failures += 1
        elif size > 1:
            waiting.most = max(1, size // 2)
        elif self._num_good > waiting.num_good:
            return self._bad_answer(waiting, str(error))
        else:
            waiting.failures += 1
        return True

    def _succeeded(self) -> None:
        away = self.away_seconds
        self._breaker = self._breaker.succeeded()
        if away:
            log.info("reward_source_back", source=self._name, url=self._config.url, seconds=round(away, 1))
        self._changed.set()

    def _failed(self, detail: str, *, probe: bool) -> None:
        self.figures.failed_requests += 1
        was_open = self._breaker.opened_at is not None
        self._breaker = self._breaker.failed(self._clock(), probe=probe)
        if not was_open and self._breaker.opened_at is not None:
            log.warning(
                "reward_source_away", source=self._name, url=self._config.url, failures=self._breaker.failures,
                error=detail, waiting=self._num_waiting,
                effect="nothing more is leased; responses wait"
                f" up to {self._config.patience_seconds:g} s, and no reward is made up",
            )  # fmt: skip
        self._changed.set()


def _fail(waiting: _Waiting[T], error: Exception) -> None:
    if not waiting.future.done():
        waiting.future.set_exception(error)

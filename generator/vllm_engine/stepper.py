"""vLLM's engine in a thread of its own, driven from asyncio.

    call(f), generate() ─▶ inbox ─▶ thread: f(engine), between two steps
                                            step while requests run and it is not paused ─▶ futures of the event loop

The thread consumes the inbox, waits for it when there is nothing to step, and is unblocked by any call. Where a request
ends such a wait, the event loop may first finish what it has at hand: requests that come together are stepped together
from the first step on. Sessions whose turns end in one step would drift apart, and each step have fewer of them.

vLLM's engine is made, used and ended in this one thread; it sees plain synchronous calls, as `LLM.generate` makes them.
An exception out of a step is the end of the engine: every call from then on raises it.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")
_JOIN_SECONDS = 30.0
_TOGETHER_SECONDS = 0.005  # at most, that a request waits for others in an engine that has nothing to do
_ENGINE_DEAD = "EngineDeadError"  # vLLM's, where its core is a process of its own and that ended
_MOST_NAMED = 8  # requests, in the words about an engine that died
_HEARD_SECONDS = 0.05
Hear = Callable[[Sequence[int]], None]
"""Is called with all tokens so far."""
_Result = tuple[asyncio.Future[Any], Any, Exception | None]


class EngineDead(Exception):
    """A step failed before; the text is its error."""


class Stepper:
    """Make it in the event loop, ``await start(make_engine)``, ``stop()`` at the end.

    ``make_engine()`` returns what has vLLM's LLMEngine interface: ``add_request``, ``abort_request`` and ``step``.
    Requests must ask for their final output only, or for all of it so far where somebody
    hears it.
    """

    def __init__(self) -> None:
        self.paused = False  # set it from within `call` only
        self.error: BaseException | None = None
        self._loop = asyncio.get_running_loop()
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: dict[str, asyncio.Future[Any]] = {}  # by request id; the thread's own
        self._hearing: dict[str, tuple[Hear, float]] = {}  # likewise, and when it was told last
        self._engine: Any = None
        self._thread: threading.Thread | None = None

    @property
    def is_dead(self) -> bool:
        """Whether the engine's thread ended by an error: `error` says which."""
        return self.error is not None

    async def start(self, make_engine: Callable[[], Any]) -> None:
        """Make the engine in its thread. Raises what `make_engine` raised."""
        started: asyncio.Future[None] = self._loop.create_future()
        # A daemon: one that is stuck in a collective can't keep the process from leaving.
        self._thread = threading.Thread(target=self._run, args=(make_engine, started), name="engine", daemon=True)
        self._thread.start()
        await started

    async def call(self, function: Callable[[Any], T]) -> T:
        """``function(engine)``, run in the thread when no step is running; its result or exception."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                self._check()
                self._settle([(future, function(self._engine), None)])
            except Exception as error:  # noqa: BLE001  (handed to the caller)
                if type(error).__name__ == _ENGINE_DEAD and not self.is_dead:
                    self._fail(error)
                self._settle([(future, None, error)])

        self._inbox.put(run)
        return await future

    async def generate(
        self,
        request_id: str,
        prompt: Any,
        params: Any,
        prepare: Callable[[Any, str], None] | None = None,
        hear: Hear | None = None,
        add: Callable[[Any], str] | None = None,
    ) -> Any:
        """The final output of one request, or of one turn of it. Cancelling this aborts it. Raises what vLLM refuses it
        with.

        Args:
            request_id, prompt, params: as `LLMEngine.add_request` takes them.
            add: gives the engine the request, in place of `LLMEngine.add_request`; the id it has there.
            prepare: called with the engine and the id it gave the request, before the request's first step.
            hear: called in the event loop with all tokens so far, now and then.
        """
        future: asyncio.Future[Any] = self._loop.create_future()

        def begin() -> None:
            try:
                self._check()
                engine = self._engine
                given_id = engine.add_request(request_id, prompt, params) if add is None else add(engine)
                self._waiting[request_id] = future
                if hear is not None:
                    self._hearing[request_id] = hear, 0.0
                if prepare is not None:
                    prepare(engine, given_id)
            except Exception as error:  # noqa: BLE001  (handed to the caller)
                abort()
                self._settle([(future, None, error)])

        def abort() -> None:
            self._hearing.pop(request_id, None)
            if self._waiting.pop(request_id, None) is not None and not self.is_dead:
                self._engine.abort_request([request_id])

        self._inbox.put(begin)
        try:
            return await future
        except asyncio.CancelledError:
            self._inbox.put(abort)
            raise

    def abort(self, request_id: str) -> None:
        """End a request that nobody waits for: one between two turns. What is asked after this finds it gone."""

        def abort() -> None:
            if not self.is_dead:
                self._engine.abort_request([request_id])

        self._inbox.put(abort)

    def stop(self, end: Callable[[Any], None]) -> None:
        """``end(engine)`` in the thread, which then ends. Whoever still waits for a request is not answered."""
        if self._thread is None:
            return
        if self._engine is not None:
            self._inbox.put(lambda: end(self._engine))
        self._inbox.put(None)
        self._thread.join(_JOIN_SECONDS)
        if self._thread.is_alive():
            log.warning("engine_thread_stuck", waited_seconds=_JOIN_SECONDS, waiting_for="vLLM")
        self._thread = None

    # The thread

    def _run(self, make_engine: Callable[[], Any], started: asyncio.Future[None]) -> None:
        try:
            self._engine = make_engine()
        except Exception as error:  # noqa: BLE001  (handed to whoever started us)
            self._settle([(started, None, error)])
            return
        self._settle([(started, None, None)])
        while True:
            was_idle = not self._has_work()
            try:
                command = self._inbox.get(block=was_idle)
            except queue.Empty:
                command = self._step
            if command is None:
                return
            self._do(command)
            if was_idle and self._has_work():
                self._take_what_comes_together()

    def _do(self, command: Callable[[], None]) -> None:
        try:
            command()
        except Exception as error:  # noqa: BLE001  (whatever it is, the engine can't be trusted any more)
            self._fail(error)

    def _take_what_comes_together(self) -> None:
        """Until the event loop has done what it has at hand, or for `_TOGETHER_SECONDS`."""

        def done() -> None: ...

        try:
            self._loop.call_soon_threadsafe(self._inbox.put, done)
        except RuntimeError:  # the loop is closed: nobody asks any more
            return
        ends = time.monotonic() + _TOGETHER_SECONDS
        while (left := ends - time.monotonic()) > 0:
            try:
                command = self._inbox.get(timeout=left)
            except queue.Empty:
                return
            if command is None:
                self._inbox.put(None)  # the end, which comes after all that is in the inbox
            if command is None or command is done:
                return
            self._do(command)

    def _has_work(self) -> bool:
        """A sequence that waits for its next turn is no work: vLLM counts it as unfinished, so it is not asked."""
        return not self.paused and not self.is_dead and bool(self._waiting)

    def _step(self) -> None:
        outputs = self._engine.step()
        ended = [(self._waiting.pop(each.request_id, None), each) for each in outputs if _has_ended(each)]
        if self._hearing:
            self._tell(outputs)
        if found := [(future, output, None) for future, output in ended if future is not None]:
            self._settle(found)

    def _tell(self, outputs: Sequence[Any]) -> None:
        """Whoever hears a request is told what it has so far, at most every `_HEARD_SECONDS`."""
        now = time.monotonic()
        for output in outputs:
            hear, told = self._hearing.get(output.request_id, (None, now))
            if _has_ended(output):
                self._hearing.pop(output.request_id, None)
            elif hear is not None and now - told >= _HEARD_SECONDS:
                self._hearing[output.request_id] = hear, now
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears any more
                    self._loop.call_soon_threadsafe(hear, list(output.outputs[0].token_ids))

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, {}
        said = f"{type(error).__name__}: {error} ({_in_words(waiting)})"
        log.exception("engine_failed", in_flight=len(waiting), requests=list(waiting))
        self.error = EngineDead(said)
        self._settle([(future, None, EngineDead(said)) for future in waiting.values()])

    def _check(self) -> None:
        if self.error is not None:
            raise EngineDead(str(self.error))

    def _settle(self, results: Sequence[_Result]) -> None:
        """Give the event loop results, in one go."""
        try:
            self._loop.call_soon_threadsafe(_settle, results)
        except RuntimeError:  # the loop is closed: nobody waits any more
            return


def _has_ended(output: Any) -> bool:
    """A request, or one turn of a request that may go on: that one is never finished."""
    return bool(output.finished or output.outputs[0].finish_reason is not None)


def _in_words(request_ids: Iterable[str]) -> str:
    """Who was in the step in which the engine died: one of them may be the cause."""
    names = list(request_ids)
    if not names:
        return "no request was in flight"
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"in flight: {', '.join(names[:_MOST_NAMED])}{more}"


def _settle(results: Sequence[_Result]) -> None:
    for future, result, error in results:
        if future.done():
            continue
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

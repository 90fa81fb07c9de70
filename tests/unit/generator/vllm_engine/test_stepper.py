"""The engine thread: what runs when, who is answered, and how it ends. A fake of vLLM's LLMEngine."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from vcppo.generator.vllm_engine import stepper
from vcppo.generator.vllm_engine.stepper import EngineDead, Stepper


class FakeEngine:
    """Ends each request after as many steps as its prompt says."""

    def __init__(self) -> None:
        self.left: dict[str, int] = {}
        self.aborted: list[str] = []
        self.num_steps = 0
        self.threads: set[int] = set()
        self.fail = False
        self.ended = False
        self.may_step = threading.Semaphore(10**9)

    def add_request(self, request_id: str, prompt: Any, params: Any) -> None:
        self.threads.add(threading.get_ident())
        if prompt <= 0:
            raise ValueError("refused")
        self.left[request_id] = prompt

    def abort_request(self, request_ids: list[str]) -> None:
        self.aborted += request_ids
        for name in request_ids:
            del self.left[name]

    def has_unfinished_requests(self) -> bool:
        return bool(self.left)

    def step(self) -> list[Any]:
        self.threads.add(threading.get_ident())
        assert self.may_step.acquire(timeout=10)
        if self.fail:
            raise RuntimeError("out of memory")
        self.num_steps += 1
        self.left = {name: count - 1 for name, count in self.left.items()}
        ended = [name for name, count in self.left.items() if count == 0]
        self.left = {name: count for name, count in self.left.items() if count > 0}
        running = [
            SimpleNamespace(request_id=name, finished=False, outputs=[_said(self.num_steps)]) for name in self.left
        ]
        return running + [SimpleNamespace(request_id=name, finished=True) for name in ended]


def _said(count: int) -> Any:
    return SimpleNamespace(token_ids=list(range(count)), finish_reason=None)


def run(body: Callable[[Stepper, FakeEngine], Awaitable[None]]) -> FakeEngine:
    async def main() -> FakeEngine:
        engine, stepper = FakeEngine(), Stepper()
        await stepper.start(lambda: engine)
        try:
            async with asyncio.timeout(20):
                await body(stepper, engine)
        finally:
            stepper.stop(lambda made: setattr(made, "ended", True))
        return engine

    return asyncio.run(main())


def test_a_request_is_heard_in_the_event_loop_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vcppo.generator.vllm_engine.stepper._HEARD_SECONDS", 0.0)
    heard: list[tuple[int, int]] = []

    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        def hear(token_ids: Any) -> None:
            heard.append((len(token_ids), threading.get_ident()))

        output = await stepper.generate("r", 4, None, hear=hear)
        assert output.finished and await stepper.generate("s", 3, None) is not None
        with pytest.raises(ValueError):
            await stepper.generate("refused", 0, None, hear=hear)
        assert stepper._hearing == {}

    run(body)
    assert heard == [(1, threading.get_ident()), (2, threading.get_ident()), (3, threading.get_ident())]


def test_requests_run_side_by_side_in_one_other_thread() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        outputs = await asyncio.gather(*(stepper.generate(f"r{i}", 1 + i % 5, None) for i in range(20)))
        assert [output.request_id for output in outputs] == [f"r{i}" for i in range(20)]

    engine = run(body)
    assert len(engine.threads) == 1
    assert threading.get_ident() not in engine.threads
    assert engine.ended


def test_requests_that_come_together_are_stepped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks works a little before, and lets the engine's thread run, as a tokenizer does."""
    monkeypatch.setattr(stepper, "_TOGETHER_SECONDS", 10.0)  # however slow the machine is

    async def ask(made: Stepper, name: str) -> None:
        time.sleep(0.0005)
        await made.generate(name, 4, None)

    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        for turn in range(8):
            await asyncio.gather(*(ask(stepper, f"{turn} {i}") for i in range(6)))

    assert run(body).num_steps == 8 * 4


def test_an_event_loop_that_is_busy_keeps_nobody_waiting() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        asking = asyncio.create_task(stepper.generate("a", 3, None))
        await asyncio.sleep(0)
        time.sleep(0.5)  # what it has at hand takes long
        assert engine.num_steps == 3
        await asking

    run(body)


def test_nothing_is_stepped_without_requests_or_while_paused() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        engine.may_step = threading.Semaphore(0)
        waiting = asyncio.create_task(stepper.generate("long", 3, None))
        while not engine.left:
            await asyncio.sleep(0.005)
        pausing = asyncio.create_task(stepper.call(lambda _: setattr(stepper, "paused", True)))
        await asyncio.sleep(0.05)
        assert not pausing.done()  # a step is running
        engine.may_step.release()
        await pausing
        num_steps = engine.num_steps
        engine.may_step = threading.Semaphore(10**9)
        assert await stepper.call(lambda made: made.left) == {"long": 3 - num_steps}
        await asyncio.sleep(0.05)
        assert engine.num_steps == num_steps
        await stepper.call(lambda _: setattr(stepper, "paused", False))
        assert (await waiting).request_id == "long"
        await asyncio.sleep(0.05)
        assert engine.num_steps == 3

    run(body)


def test_a_cancelled_request_is_aborted_and_the_others_go_on() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        await stepper.call(lambda _: setattr(stepper, "paused", True))
        first, second = (asyncio.create_task(stepper.generate(name, 2, None)) for name in ("first", "second"))
        await stepper.call(lambda _: None)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await stepper.call(lambda _: setattr(stepper, "paused", False))
        assert (await second).request_id == "second"
        assert engine.aborted == ["first"]

    run(body)


def test_what_the_engine_refuses_or_a_call_raises_is_the_callers() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        with pytest.raises(ValueError, match="refused"):
            await stepper.generate("bad", 0, None)
        with pytest.raises(KeyError):
            await stepper.call(lambda _: {}["x"])
        assert not stepper.is_dead
        assert (await stepper.generate("good", 1, None)).request_id == "good"

    run(body)


def test_a_failed_step_is_the_end_and_everybody_hears_of_it() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        engine.fail = True
        waiting = [asyncio.create_task(stepper.generate(f"r{i}", 2, None)) for i in range(3)]
        for task in waiting:
            with pytest.raises(EngineDead, match="out of memory"):
                await task
        assert stepper.is_dead
        with pytest.raises(EngineDead, match="out of memory"):
            await stepper.generate("late", 1, None)
        with pytest.raises(EngineDead):
            await stepper.call(lambda _: None)

    run(body)


def test_a_dead_engine_names_the_requests_that_were_in_flight() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        await stepper.call(lambda _: setattr(stepper, "paused", True))
        waiting = [asyncio.create_task(stepper.generate(f"r{i}", 5, None)) for i in range(12)]
        await asyncio.sleep(0)  # each has put its request into the inbox
        engine.fail = True
        await stepper.call(lambda _: setattr(stepper, "paused", False))
        found = [str(error) for error in await asyncio.gather(*waiting, return_exceptions=True)]
        assert len(set(found)) == 1
        assert found[0].startswith("RuntimeError: out of memory (in flight: r0, r1,")
        assert found[0].endswith("r7 and 4 more)")

    run(body)


def test_a_request_is_prepared_before_its_first_step_and_one_that_is_refused_is_not() -> None:
    async def body(stepper: Stepper, engine: FakeEngine) -> None:
        seen: list[int] = []
        await stepper.generate("good", 2, None, lambda engine, _: seen.append(engine.num_steps))
        with pytest.raises(ValueError, match="refused"):
            await stepper.generate("bad", 0, None, lambda *_: seen.append(-1))
        assert seen == [0] and engine.aborted == []
        with pytest.raises(KeyError):
            await stepper.generate("unprepared", 5, None, lambda *_: {}["x"])
        assert engine.aborted == ["unprepared"] and not engine.left

    run(body)


def test_an_engine_that_can_not_be_made_says_why_and_stopping_is_quick() -> None:
    async def main() -> None:
        stepper = Stepper()

        def make() -> Any:
            raise OSError("no such model")

        with pytest.raises(OSError, match="no such model"):
            await stepper.start(make)
        stepper.stop(lambda _: None)

    asyncio.run(main())

"""Batches, tries, patience: against sources that are scripted request by request, without a network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcppo.common.config import RewardServiceConfig
from vcppo.common.tasks import Verdict
from vcppo.generator.reward_sources.exchange import Batching, Exchange
from vcppo.generator.reward_sources.items import Answers, Asked, NoReward, RequestFailed, Said, SourceAway

Handler = Callable[[Sequence[str]], Answers]
QUICK = {
    "url": "http://a", "back_off_seconds": 0.002, "breaker_failures": 3, "breaker_seconds": 0.02,
    "patience_seconds": 0.4, "max_concurrency": 4,
}  # fmt: skip


class Scripted:
    """Answers by `handler`; notes every request."""

    def __init__(self, handler: Handler, seconds: float = 0.0) -> None:
        self.handler, self.seconds = handler, seconds
        self.requests: list[list[str]] = []
        self.now = self.most = 0

    async def request(self, items: Sequence[Asked]) -> Answers:
        ids = [item.id for item in items]
        self.requests.append(ids)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(self.seconds)
            return self.handler(ids)
        finally:
            self.now -= 1

    async def close(self) -> None:
        return


def asked(name: object) -> Asked:
    return Asked(str(name), "", {}, "", "stop", 1, Verdict("correct", None))


def right(name: str) -> float:
    return float(name) / 100


def good(ids: Sequence[str]) -> Answers:
    return Answers({name: Said(right(name)) for name in ids})


def accept(said: Said) -> float:
    if said.reward > 1:
        raise ValueError("beyond the range")
    return said.reward


def run(asker: Scripted, body: Callable[[Exchange[float]], Awaitable[Any]], size: int = 4, **more: Any) -> Any:
    async def main() -> Any:
        config = RewardServiceConfig.model_validate(QUICK | more)
        exchange: Exchange[float] = Exchange("task.reward_service", config, asker, Batching(size, 0.02))
        try:
            async with asyncio.timeout(20):
                return await body(exchange)
        finally:
            await exchange.close()

    return asyncio.run(main())


async def all_of(exchange: Exchange[float], names: Sequence[object]) -> list[Any]:
    return await asyncio.gather(*(exchange.ask(asked(name), accept) for name in names), return_exceptions=True)


def test_batches_are_full_or_have_waited() -> None:
    asker = Scripted(good)
    assert run(asker, lambda exchange: all_of(exchange, range(10))) == [right(str(n)) for n in range(10)]
    assert sorted(map(len, asker.requests)) == [2, 4, 4]


def test_no_more_requests_at_once_than_allowed() -> None:
    asker = Scripted(good, 0.01)
    run(asker, lambda exchange: all_of(exchange, range(40)), max_concurrency=2)
    assert asker.most == 2


@pytest.mark.parametrize("fault", ["missing", "range"])
def test_an_item_that_never_gets_a_reward_is_given_up_alone(fault: str) -> None:
    def handler(ids: Sequence[str]) -> Answers:
        said = {name: Said(right(name)) for name in ids if name != "7"}
        return Answers(said | ({"7": Said(2.0)} if fault == "range" and "7" in ids else {}))

    asker = Scripted(handler)
    found = run(asker, lambda exchange: all_of(exchange, range(10)), answer_tries=3)
    assert sum("7" in ids for ids in asker.requests) == 3
    assert isinstance(found.pop(7), NoReward) and found == [right(str(n)) for n in range(10) if n != 7]


def fails_with(poison: str) -> Handler:
    def handler(ids: Sequence[str]) -> Answers:
        if poison in ids:
            raise RequestFailed("status 500", by_items=True)
        return good(ids)

    return handler


def test_an_item_that_makes_every_request_fail_is_found_and_given_up() -> None:
    """Though it is the last that is asked about: probes ask about another."""
    asker = Scripted(fails_with("5"))

    async def body(exchange: Exchange[float]) -> list[Any]:
        found = await all_of(exchange, range(8))
        assert exchange.figures.rejected == 1
        return found

    found = run(asker, body, patience_seconds=10.0)
    assert isinstance(found.pop(5), NoReward) and found == [right(str(n)) for n in range(8) if n != 5]


@pytest.mark.parametrize("by_items", [True, False])
def test_a_source_that_is_away_gives_nobody_up(by_items: bool) -> None:
    def handler(ids: Sequence[str]) -> Answers:
        raise RequestFailed("status 500", by_items=by_items)

    asker = Scripted(handler)

    async def body(exchange: Exchange[float]) -> list[Any]:
        found = await all_of(exchange, range(8))
        assert exchange.away_seconds >= 0.4 and exchange.figures.handed_back == 8
        began = time.monotonic()
        assert [type(each) for each in await all_of(exchange, [9])] == [SourceAway]
        assert time.monotonic() - began >= 0.4  # one that comes later has the same patience
        return found

    found = run(asker, body, answer_tries=1)
    assert [type(each) for each in found] == [SourceAway] * 8
    assert len(asker.requests) < 60  # the breaker keeps them few: a probe in 20 ms
    assert "task.reward_service.url = http://a was away" in str(found[0])


def test_leasing_waits_while_it_is_away_and_what_waited_gets_its_reward() -> None:
    away = True

    def handler(ids: Sequence[str]) -> Answers:
        if away:
            raise RequestFailed("no connection")
        return good(ids)

    async def body(exchange: Exchange[float]) -> None:
        nonlocal away
        await exchange.until_reachable()  # at once
        waiting = asyncio.create_task(all_of(exchange, range(8)))
        while not exchange.away_seconds:
            await asyncio.sleep(0.01)
        leasing = asyncio.create_task(exchange.until_reachable())
        await asyncio.sleep(0.1)
        assert not leasing.done() and not waiting.done()
        away = False
        assert await waiting == [right(str(n)) for n in range(8)]
        await leasing
        assert exchange.away_seconds == 0 and exchange.num_waiting == 0

    run(Scripted(handler), body, patience_seconds=10.0)


def test_with_nothing_left_to_probe_with_leasing_goes_on() -> None:
    def handler(ids: Sequence[str]) -> Answers:
        raise RequestFailed("no connection")

    async def body(exchange: Exchange[float]) -> None:
        assert [type(each) for each in await all_of(exchange, range(3))] == [SourceAway] * 3
        await exchange.until_reachable()

    run(Scripted(handler), body)


def test_what_nobody_waits_for_any_more_is_not_sent() -> None:
    asker = Scripted(good)

    async def body(exchange: Exchange[float]) -> None:
        asking = [asyncio.create_task(exchange.ask(asked(name), accept)) for name in range(4)]
        await asyncio.sleep(0)
        asking[0].cancel()
        asking[2].cancel()
        assert [await asking[1], await asking[3]] == [right("1"), right("3")]

    run(asker, body, size=8)
    assert asker.requests == [["1", "3"]]


def test_a_bug_reaches_who_asked() -> None:
    def handler(ids: Sequence[str]) -> Answers:
        raise ZeroDivisionError

    found = run(Scripted(handler), lambda exchange: all_of(exchange, range(2)))
    assert [type(each) for each in found] == [ZeroDivisionError] * 2


KIND = st.sampled_from(["good", "good", "half", "range", "away", "broken", "strange"])


@settings(max_examples=30, deadline=None)
@given(st.lists(KIND, max_size=12), st.integers(1, 12), st.integers(1, 5))
def test_whatever_it_does_each_gets_its_own_reward_or_none(kinds: list[str], count: int, size: int) -> None:
    script = iter(kinds)

    def handler(ids: Sequence[str]) -> Answers:
        kind = next(script, "good")
        if kind in ("away", "broken"):
            raise RequestFailed(kind, by_items=kind == "broken")
        said = good(ids).said
        if kind == "half":
            return Answers({name: each for i, (name, each) in enumerate(said.items()) if i % 2})
        if kind == "range":
            return Answers({name: Said(7.0) for name in ids})
        return Answers(said, strange=int(kind == "strange"))

    async def body(exchange: Exchange[float]) -> list[Any]:
        found = await all_of(exchange, range(count))
        assert exchange.num_waiting == 0
        return found

    found = run(Scripted(handler), body, size, answer_tries=13, patience_seconds=10.0)
    assert found == [right(str(n)) for n in range(count)]

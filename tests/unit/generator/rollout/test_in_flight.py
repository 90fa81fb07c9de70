"""What a generator has in hand."""

from __future__ import annotations

import asyncio

from vcppo.generator.rollout.in_flight import InFlight


class Ended:
    """Counts the ends it was told of."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


async def work(place: asyncio.Event, end: asyncio.Event, in_flight: InFlight) -> None:
    await place.wait()
    in_flight.free_place(asyncio.current_task())
    await end.wait()


async def _a_place_is_free_before_the_prompt_is_through() -> None:
    ended, place, end = Ended(), asyncio.Event(), asyncio.Event()
    in_flight = InFlight(ended)
    in_flight.start("a", work(place, end, in_flight))
    assert (len(in_flight), in_flight.num_generating, in_flight.leased) == (1, 1, {"a"})
    place.set()
    await in_flight.place_freed.wait()
    assert (len(in_flight), in_flight.num_generating, ended.count) == (1, 0, 0)
    end.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (len(in_flight), ended.count) == (0, 1)
    assert in_flight.leased == {"a"}  # the trajectory may not be appended yet


async def _cancelled_before_it_began_it_is_gone_too() -> None:
    ended = Ended()
    in_flight = InFlight(ended)
    in_flight.start("a", work(asyncio.Event(), asyncio.Event(), in_flight))
    assert await in_flight.cancel(["a", "never there"]) == ["a"]
    assert (len(in_flight), in_flight.num_generating, ended.count) == (0, 0, 1)


async def _a_prompt_that_is_back_outlives_the_end_of_its_first_task() -> None:
    ended = Ended()
    in_flight = InFlight(ended)
    in_flight.start("a", work(asyncio.Event(), asyncio.Event(), in_flight))
    cancelling = asyncio.ensure_future(in_flight.cancel(["a"]))
    await asyncio.sleep(0)
    in_flight.start("a", work(asyncio.Event(), asyncio.Event(), in_flight))
    assert await cancelling == ["a"]
    assert in_flight.prompt_ids == ["a"]
    assert await in_flight.cancel(in_flight.prompt_ids) == ["a"]
    assert (len(in_flight), ended.count) == (0, 2)


def test_a_place_is_free_before_the_prompt_is_through() -> None:
    asyncio.run(_a_place_is_free_before_the_prompt_is_through())


def test_cancelled_before_it_began_it_is_gone_too() -> None:
    asyncio.run(_cancelled_before_it_began_it_is_gone_too())


def test_a_prompt_that_is_back_outlives_the_end_of_its_first_task() -> None:
    asyncio.run(_a_prompt_that_is_back_outlives_the_end_of_its_first_task())

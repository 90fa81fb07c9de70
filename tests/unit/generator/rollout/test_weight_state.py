"""One state of a generator's weights, and what it allows."""

from __future__ import annotations

import asyncio

import pytest

from vcppo.generator.rollout.weight_state import WeightGate, WeightState


@pytest.mark.parametrize(
    ("state", "may_begin", "may_send"),
    [
        (WeightState.UNSET, False, False),
        (WeightState.UPDATING, False, False),
        (WeightState.UNPROVEN, True, False),
        (WeightState.READY, True, True),
    ],
)
def test_a_state_lets_through_exactly_who_may_pass(state: WeightState, may_begin: bool, may_send: bool) -> None:
    async def body() -> None:
        gate = WeightGate()
        beginning, sending = asyncio.create_task(gate.until_may_begin()), asyncio.create_task(gate.until_may_send())
        await asyncio.sleep(0)
        assert not beginning.done()
        assert not sending.done()
        gate.enter(WeightState.READY)  # they were let through once, and are held again
        gate.enter(state)
        await asyncio.sleep(0)
        again = [asyncio.create_task(gate.until_may_begin()), asyncio.create_task(gate.until_may_send())]
        for _ in range(3):
            await asyncio.sleep(0)
        assert [task.done() for task in again] == [may_begin, may_send] == [gate.may_begin, gate.may_send]
        for task in (beginning, sending, *again):
            task.cancel()

    asyncio.run(body())

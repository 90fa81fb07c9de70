"""A generator's worker at work beside a test, stopped and waited for when the test is through."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from vcppo.generator.rollout.rollout import RolloutWorker

_END_SECONDS = 30


@asynccontextmanager
async def at_work(worker: RolloutWorker) -> AsyncIterator[None]:
    """It runs for as long as the block does."""
    working = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        async with asyncio.timeout(_END_SECONDS):
            await working

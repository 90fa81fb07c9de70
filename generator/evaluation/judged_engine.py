"""An engine and its judges for as long as something is to be sampled and judged, and many samples side by side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from vcppo.common.config import VcppoConfig
from vcppo.common.errors import VcppoError
from vcppo.generator.reward_sources.source import RewardSource, open_source
from vcppo.generator.turns.judges import Judges, make_judges
from vcppo.generator.vllm_engine.engine import Engine


class JudgedEngine(NamedTuple):
    """What makes responses and what judges them; `rewards` is None where verdicts give the rewards."""

    engine: Engine
    judges: Judges
    rewards: RewardSource | None


@asynccontextmanager
async def judged_engine(config: VcppoConfig, model: str, seed: int) -> AsyncIterator[JudgedEngine]:
    """vLLM on `model` and all that judges, started; they are ended with the context.

    Raises:
        VcppoError: one of them does not start.
    """
    judges, rewards = make_judges(config.task), open_source(config)
    engine = Engine(config, model=model, seed=seed % 2**31)
    try:
        await judges.start()
        await engine.start()
        yield JudgedEngine(engine, judges, rewards)
    finally:
        engine.shutdown()
        await judges.close()
        if rewards is not None:
            await rewards.close()


async def together(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Do all of it side by side. Raises VcppoError, the first, when vLLM or a verifier fails for good."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except ExceptionGroup as failed:
        explained, bugs = failed.split(VcppoError)
        if bugs is not None or explained is None:
            raise
        raise explained.exceptions[0] from None

"""A generator's control port without its engine: the real server, checks and order of calls, in a process of its own.

Prints its endpoint and goes on until it is killed. The engine takes everything: what reaches it has passed all checks.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
import structlog

from vcppo.common.transport import ControlServer
from vcppo.generator.rollout.call_limits import CallLimits
from vcppo.generator.rollout.control import WeightControl

VOCABULARY, MAX_TOKENS = 100, 63
RECEIVE_MIB = 256.0


class _Engine:
    num_in_flight = 0
    is_dead = False

    async def canary(self, sequence: Any, prompt_length: int) -> Any:
        """As the engine would: what it can't index ends it."""
        table = np.zeros(VOCABULARY, np.float32)
        assert len(sequence) <= MAX_TOKENS and prompt_length >= 1
        return table[sequence[prompt_length:]]

    async def canary_sampled(self, sequence: Any, first: int) -> Any:
        return np.zeros(len(sequence) - first, np.float32)

    def __getattr__(self, name: str) -> Any:
        async def call(*arguments: Any) -> None:
            del arguments

        return call


async def main() -> None:
    """Serve."""
    server = ControlServer("127.0.0.1", RECEIVE_MIB)
    engine = _Engine()
    control = WeightControl(
        engine,  # type: ignore[arg-type]
        "generator-0",
        60.0,
        limits=CallLimits(VOCABULARY, MAX_TOKENS, 60.0, True),
        drop_in_flight=engine.drop_in_flight,
        end=lambda reason: None,
    )
    control.loaded(0)
    print(server.endpoint, flush=True)  # noqa: T201  (the parent reads it)
    await server.serve(control.handlers())


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    asyncio.run(main())

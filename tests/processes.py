"""What tests of processes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from vcppo.common.config import TaskConfig
from vcppo.generator.verifying.verifier_pool import VerifierPool


def is_alive(pid: int) -> bool:
    """Whether it runs: a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def in_pool(body: Callable[[VerifierPool], Awaitable[None]], config: TaskConfig) -> None:
    """Run `body` with a started pool, and close it."""

    async def main() -> None:
        pool = VerifierPool(config)
        try:
            await pool.start()
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(main())

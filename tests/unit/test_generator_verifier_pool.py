"""Verifier children: verdicts, and what hangs, raises or dies costs a child and nothing else."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping

import pytest

from common.config import TaskConfig
from common.tasks import Problem, Task, Verdict
from generator.verifier_pool import VerifierError, VerifierPool


class Misbehaving(Task):
    """Does what the response says."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return []

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: str) -> Verdict:
        if response == "hang":
            while True:
                pass
        if response == "raise":
            raise ValueError("no")
        if response == "die":
            os._exit(3)
        if response == "chatty":
            os.write(1, b"noise on stdout\n")
        return Verdict("correct" if answer["is"] == response else "wrong", response[:5])


CONFIG = TaskConfig(name=f"{__name__}:Misbehaving", verifier_timeout_seconds=1.0, verifier_processes=1)


def run(body: Callable[[VerifierPool], Awaitable[None]], config: TaskConfig = CONFIG) -> None:
    async def main() -> None:
        pool = VerifierPool(config)
        try:
            await pool.start()
            await body(pool)
        finally:
            await pool.close()

    asyncio.run(main())


def test_every_outcome_is_told_apart_and_the_pool_goes_on() -> None:
    async def body(pool: VerifierPool) -> None:
        assert await pool.verify({"is": "7"}, "7", "stop") == Verdict("correct", "7")
        assert (await pool.verify({"is": "7"}, "8", "stop")).outcome == "wrong"
        assert (await pool.verify({"is": "7"}, "raise", "stop")).outcome == "crash"
        assert (await pool.verify({"is": "7"}, "die", "stop")).outcome == "crash"
        assert await pool.verify({"is": "chatty"}, "chatty", "length") == Verdict("correct", "chatt")

    run(body)


def test_a_hanging_verifier_is_killed_at_its_deadline() -> None:
    async def body(pool: VerifierPool) -> None:
        began = time.monotonic()
        assert (await pool.verify({"is": "7"}, "hang", "stop")).outcome == "timeout"
        assert time.monotonic() - began < 20.0  # its deadline is 1 s; the rest is the replacement's start
        assert (await pool.verify({"is": "7"}, "7", "stop")).outcome == "correct"

    run(body)


def test_waiting_callers_are_served_in_turn() -> None:
    async def body(pool: VerifierPool) -> None:
        verdicts = await asyncio.gather(*(pool.verify({"is": str(i)}, str(i), "stop") for i in range(20)))
        assert [v.extracted for v in verdicts] == [str(i) for i in range(20)]

    run(body)


def test_a_task_that_cannot_be_loaded_is_one_clear_error() -> None:
    async def body(pool: VerifierPool) -> None:
        pass

    with pytest.raises(VerifierError, match="no_such_module:Task did not start"):
        run(body, TaskConfig(name="no_such_module:Task"))

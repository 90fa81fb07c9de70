"""Verifier children: verdicts, and what hangs, raises or dies costs a child and nothing else."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.processes import in_pool
from vcppo.common.config import TaskConfig
from vcppo.common.errors import EXIT_USAGE
from vcppo.common.process.family import Family
from vcppo.common.tasks import Problem, Task, Verdict
from vcppo.generator.verifying import spawn_patiently
from vcppo.generator.verifying.verifier_pool import VerifierError, VerifierPool

_GARBAGE = {
    "another reply": b'{"number": 1, "outcome": "correct", "extracted": null, "detail": null}\n',
    "a list": b"[1]\n",
    "deep": b"[" * 60_000 + b"\n",
    "not utf-8": b"\xff\n",
    "no end": b"x" * 100_000,
}


def _answer_pipes() -> list[int]:
    """Where the child's answers go, found as hostile code would."""
    links = {int(entry.name): os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()}
    return [number for number, target in links.items() if number > 2 and target.startswith("pipe:")]


def _start_a_family(names: Path) -> None:
    """A child that holds the pipes, and a grandchild in a session of its own; their pids go to a file."""
    holder = os.fork()
    if holder == 0:
        time.sleep(600)
    if os.fork() == 0:
        os.setsid()
        hidden = os.fork()
        if hidden == 0:
            os.closerange(0, 100)
            time.sleep(600)
        names.write_text(f"{holder} {hidden}")
        os._exit(0)


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
        if response == "greedy":
            return Verdict("wrong", str(len(bytearray(2**40))))
        if response == "huge":
            return Verdict("correct", "x" * 10**7)
        if response == "no verdict":
            return None  # type: ignore[return-value]
        if response == "no outcome":
            return Verdict("maybe", None)  # type: ignore[arg-type]
        if response.startswith("family"):
            _start_a_family(Path(response.partition(" ")[2]))
            while True:
                time.sleep(600)
        if response in _GARBAGE:
            for descriptor in _answer_pipes():
                os.write(descriptor, _GARBAGE[response])
        if response == "close":
            for descriptor in _answer_pipes():
                os.close(descriptor)
        return Verdict("correct" if answer["is"] == response else "wrong", response[:5])


CONFIG = TaskConfig(name=f"{__name__}:Misbehaving", verifier_timeout_seconds=1.0, verifier_processes=1)


def run(body: Callable[[VerifierPool], Awaitable[None]], config: TaskConfig = CONFIG) -> None:
    in_pool(body, config)


def test_every_outcome_is_told_apart_and_the_pool_goes_on() -> None:
    async def body(pool: VerifierPool) -> None:
        assert await pool.verify({"is": "7"}, "7", "stop") == Verdict("correct", "7")
        assert (await pool.verify({"is": "7"}, "8", "stop")).outcome == "wrong"
        assert (await pool.verify({"is": "7"}, "raise", "stop")).outcome == "crash"
        assert (await pool.verify({"is": "7"}, "die", "stop")).outcome == "crash"
        assert await pool.verify({"is": "chatty"}, "chatty", "length") == Verdict("correct", "chatt")

    run(body)


@pytest.mark.parametrize("response", ["greedy", "no verdict", "no outcome", "close", *_GARBAGE])
def test_whatever_a_child_says_the_next_verdict_is_the_next_ones(response: str) -> None:
    """A line too many once made each verdict that of the response before; a list ended the generator."""

    async def body(pool: VerifierPool) -> None:
        assert (await pool.verify({"is": "7"}, "7", "stop")).outcome == "correct"
        await pool.verify({"is": "7"}, response, "stop")
        for number in range(3):
            assert await pool.verify({"is": str(number)}, str(number), "stop") == Verdict("correct", str(number))
            assert (await pool.verify({"is": "7"}, str(number), "stop")).outcome == "wrong"

    run(body)


def test_a_verdict_without_end_is_cut() -> None:
    async def body(pool: VerifierPool) -> None:
        assert await pool.verify({"is": "7"}, "huge", "stop") == Verdict("correct", "x" * 1000)

    run(body)


def test_half_a_character_in_a_response_is_no_crash() -> None:
    async def body(pool: VerifierPool) -> None:
        assert (await pool.verify({"is": "\ud800"}, "\ud800", "stop")).outcome == "correct"

    run(body)


def test_a_hanging_verifier_is_killed_at_its_deadline() -> None:
    async def body(pool: VerifierPool) -> None:
        began = time.monotonic()
        assert (await pool.verify({"is": "7"}, "hang", "stop")).outcome == "timeout"
        assert time.monotonic() - began < CONFIG.verifier_timeout_seconds + 1.0  # nobody waits for the new child
        assert (await pool.verify({"is": "7"}, "7", "stop")).outcome == "correct"

    run(body)


def test_a_verifier_that_forked_is_killed_with_its_family(tmp_path: Path) -> None:
    """A grandchild that held the pipe once hung the slot, and with it the run; one in another session was left."""

    async def body(pool: VerifierPool) -> None:
        names = tmp_path / "pids"
        began = time.monotonic()
        assert (await pool.verify({"is": "7"}, f"family {names}", "stop")).outcome == "timeout"
        assert time.monotonic() - began < CONFIG.verifier_timeout_seconds + 1.0
        assert await pool.verify({"is": "7"}, "7", "stop") == Verdict("correct", "7")
        assert [pid for pid in map(int, names.read_text().split()) if Path(f"/proc/{pid}").exists()] == []

    run(body)


def test_a_cancelled_verdict_leaves_the_pool_as_large_as_it_was() -> None:
    """Rollouts are dropped when weights were wrong; their verifiers were lost with them."""

    async def body(pool: VerifierPool) -> None:
        for _ in range(2):
            judging = asyncio.create_task(pool.verify({"is": "7"}, "hang", "stop"))
            await asyncio.sleep(0.2)
            judging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await judging
        async with asyncio.timeout(20):
            assert (await pool.verify({"is": "7"}, "7", "stop")).outcome == "correct"

    run(body)


def test_a_child_that_does_not_come_up_again_is_heard_of_by_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(pool: VerifierPool) -> None:
        monkeypatch.setattr("sys.executable", "/no/such/python")
        assert (await pool.verify({"is": "7"}, "die", "stop")).outcome == "crash"
        for _ in range(2):
            with pytest.raises(OSError, match="no/such/python"):
                await pool.verify({"is": "7"}, "7", "stop")

    run(body)


def test_waiting_callers_are_served_in_turn() -> None:
    async def body(pool: VerifierPool) -> None:
        verdicts = await asyncio.gather(*(pool.verify({"is": str(i)}, str(i), "stop") for i in range(20)))
        assert [v.extracted for v in verdicts] == [str(i) for i in range(20)]

    run(body)


def test_a_task_that_cannot_be_loaded_is_one_clear_error() -> None:
    async def body(pool: VerifierPool) -> None:
        pass

    with pytest.raises(VerifierError, match="no_such_module:Task did not start") as caught:
        run(body, TaskConfig(name="no_such_module:Task"))
    assert caught.value.exit_code == EXIT_USAGE  # the launcher does not try again


def test_a_child_that_can_not_be_started_for_want_of_processes_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(pool: VerifierPool) -> None:
        start, tries = Family.start, []

        async def scarce(*arguments: Any) -> Family:
            tries.append(1)
            if len(tries) < 3:
                raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
            return await start(*arguments)

        monkeypatch.setattr(spawn_patiently, "_RETRY_SECONDS", 0.01)
        monkeypatch.setattr(Family, "start", scarce)
        child = await pool._idle.get()
        assert isinstance(child, Family)
        await pool._replace(child)
        assert len(tries) == 3
        assert isinstance(pool._idle.get_nowait(), Family)

    run(body)

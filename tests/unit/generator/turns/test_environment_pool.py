"""Environment children: rollouts side by side, and what hangs, raises or dies costs no other rollout its outcome."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generator.verifying.test_verifier_pool import _answer_pipes, _start_a_family
from vcppo.common.config import TaskConfig
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.errors import EXIT_USAGE
from vcppo.common.tasks import Problem, TaskError, Verdict
from vcppo.generator.turns.environment_pool import EnvironmentNotStarted, EnvironmentPool, RolloutLost

HERE = "tests.unit.generator.turns.test_environment_pool"


class Misbehaving(Environment):
    """Does what the action says; counts its own steps."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("x", {}) for _ in range(count)]

    def reset(self, answer: Mapping[str, object]) -> None:
        if answer.get("fails"):
            raise ValueError("no state")
        self.name, self.steps = answer["name"], 0

    def step(self, action: str) -> Observation:
        self.steps += 1
        if action == "hang":
            while True:
                pass
        if action == "raise":
            raise ValueError("no")
        if action == "die":
            os._exit(3)
        if action == "noise":
            os.write(_answer_pipes()[0], b"noise\n")
        if action == "greedy":
            return Observation(str(len(bytearray(2**40))))
        if action == "nan":
            return Observation("x", float("nan"))
        if action == "none":
            return None  # type: ignore[return-value]
        if action == "huge":
            return Observation("x" * 10**6)
        if action == "half a character":
            return Observation([{"role": "user", "content": "\ud800"}])
        if action == "no tools":
            return Observation("x", tools=(1, 2, 0.0))  # type: ignore[arg-type]
        if action == "early outcome":
            return Observation("x", outcome="correct")
        if action.startswith("family"):
            _start_a_family(Path(action.partition(" ")[2]))
            time.sleep(600)
        return Observation(f"{self.name} {self.steps}", 0.5, action == "end")


class Slow(Environment):
    """Async: sleeps for as long as the action says."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem([{"role": "user", "content": "x"}], {}) for _ in range(count)]

    async def reset(self, answer: Mapping[str, object]) -> None:
        self.total = 0.0

    async def step(self, action: str) -> Observation:
        if action == "block":
            time.sleep(600)
        self.total += float(action)
        await asyncio.sleep(float(action))
        return Observation(f"{self.total:g}")

    async def close(self) -> None:
        await asyncio.sleep(0)


class Broken(Misbehaving):
    def __init__(self) -> None:
        raise ValueError("no such file")


def run(name: str, body: Callable[[EnvironmentPool], Awaitable[Any]], **settings: Any) -> Any:
    async def main() -> Any:
        pool = EnvironmentPool(TaskConfig(name=f"{HERE}:{name}", **{"verifier_timeout_seconds": 2.0, **settings}))
        await pool.start()
        try:
            return await body(pool)
        finally:
            await pool.close()

    return asyncio.run(main())


def test_each_rollout_has_a_state_of_its_own() -> None:
    async def body(pool: EnvironmentPool) -> None:
        assert not pool.is_chat
        async with pool.open() as a, pool.open() as b:
            await asyncio.gather(a.reset({"name": "a"}), b.reset({"name": "b"}))
            said = [await each.step("go") for each in (a, b, a)]
            assert [answer.observation.content for answer in said] == ["a 1", "b 1", "a 2"]
            assert (await b.step("end")).observation == Observation("b 2", 0.5, True)

    run("Misbehaving", body)


@pytest.mark.parametrize(
    "action", ["raise", "greedy", "nan", "none", "huge", "half a character", "no tools", "early outcome"]
)
def test_what_raises_or_says_nonsense_is_a_crash_and_the_child_lives(action: str) -> None:
    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as a, pool.open() as b:
            await a.reset({"name": "a"})
            await b.reset({"name": "b"})
            found = await a.step(action)
            assert found.fault == "crash" and found.detail
            assert (await b.step("go")).observation.content == "b 1"
            assert (await a.step("go")).fault == "crash"  # its state is gone
        assert (pool.counts.calls, pool.counts.errors) == (5, 2)

    run("Misbehaving", body, verifier_memory_mib=1024)


@pytest.mark.parametrize(("action", "fault"), [("hang", "timeout"), ("die", "crash"), ("noise", "crash")])
def test_what_hangs_or_dies_costs_a_child_and_its_others_are_handed_back(action: str, fault: str) -> None:
    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as a, pool.open() as b:
            await a.reset({"name": "a"})
            await b.reset({"name": "b"})
            asking = asyncio.create_task(a.step(action))
            await asyncio.sleep(0.05)
            waiting = asyncio.create_task(b.step("go"))
            assert (await asking).fault == fault
            with pytest.raises(RolloutLost):
                await waiting
        async with pool.open() as c:  # another child comes up
            await c.reset({"name": "c"})
            assert (await c.step("go")).observation.content == "c 1"

    run("Misbehaving", body)


def test_a_child_that_dies_while_nobody_asks_is_replaced(tmp_path: Path) -> None:
    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as a:
            await a.reset({"name": "a"})
            (child,) = pool._children
            child._family.kill_soon()
            await asyncio.sleep(0.3)
            with pytest.raises(RolloutLost):
                await a.step("go")
        async with pool.open() as b:
            assert (await b.reset({"name": "b"})).fault is None

    run("Misbehaving", body)


def test_a_late_call_ends_with_all_it_has_started(tmp_path: Path) -> None:
    names = tmp_path / "pids"

    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as a:
            await a.reset({"name": "a"})
            assert (await a.step(f"family {names}")).fault == "timeout"

    run("Misbehaving", body)
    for pid in names.read_text().split():
        assert not Path(f"/proc/{pid}").exists()


def test_a_dropped_rollout_leaves_the_others_in_its_child_alone() -> None:
    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as b:
            await b.reset({"name": "b"})

            async def dropped() -> None:
                async with pool.open() as a:
                    await a.reset({"name": "a"})
                    await a.step("go")
                    await asyncio.sleep(600)

            task = asyncio.create_task(dropped())
            await asyncio.sleep(0.2)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert (await b.step("go")).observation.content == "b 1"
            (child,) = pool._children
            assert child.num_rollouts == 1

    run("Misbehaving", body)


def test_a_reset_that_fails_is_said() -> None:
    async def body(pool: EnvironmentPool) -> str | None:
        async with pool.open() as a:
            return (await a.reset({"fails": True})).detail

    assert run("Misbehaving", body) == "reset(): ValueError: no state"


def test_hundreds_of_async_rollouts_share_a_child_and_a_late_one_costs_itself() -> None:
    async def body(pool: EnvironmentPool) -> None:
        assert pool.is_chat

        async def rollout(number: int) -> Any:
            async with pool.open() as session:
                await session.reset({})
                return [await session.step("600" if number == 7 else "0.1") for _ in range(1 if number == 7 else 2)]

        began = time.monotonic()
        found = await asyncio.gather(*map(rollout, range(300)))
        assert time.monotonic() - began < 30  # one after the other they take a minute
        assert [answer.fault for answer in found[7]] == ["timeout"]
        del found[7]
        assert {tuple(a.observation.content for a in answers) for answers in found} == {("0.1", "0.2")}

    run("Slow", body, environment_calls=100)


def test_async_calls_are_bounded() -> None:
    async def body(pool: EnvironmentPool) -> float:
        async with pool.open() as a, pool.open() as b:
            await asyncio.gather(a.reset({}), b.reset({}))
            began = time.monotonic()
            await asyncio.gather(a.step("0.3"), b.step("0.3"))
            return time.monotonic() - began

    assert run("Slow", body, environment_calls=1) >= 0.6
    assert run("Slow", body, environment_calls=2) < 0.58


def test_an_async_child_that_is_blocked_is_ended() -> None:
    async def body(pool: EnvironmentPool) -> None:
        async with pool.open() as a, pool.open() as b:
            await asyncio.gather(a.reset({}), b.reset({}))
            assert (await a.step("block")).fault == "timeout"
            with pytest.raises(RolloutLost):
                await b.step("0")

    run("Slow", body)


def test_one_that_can_not_start_says_so() -> None:
    async def body(pool: EnvironmentPool) -> None: ...

    with pytest.raises(EnvironmentNotStarted, match="did not start") as caught:
        run("Broken", body)
    assert caught.value.exit_code == EXIT_USAGE


def test_settings_of_one_turn_tasks_are_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"task.format_pattern: .* is an environment"):
        EnvironmentPool(TaskConfig(name=f"{HERE}:Slow", format_pattern="x"))
    for field in ("reward_service", "judge"):
        settings: dict[str, Any] = {field: {"url": "http://127.0.0.1:1/v1"}}
        text = rf"task.{field}.url: .*:Slow is an environment, .*: take task.{field} out"
        with pytest.raises(TaskError, match=text):
            EnvironmentPool(TaskConfig(name=f"{HERE}:Slow", **settings))


def test_nobody_verifies_an_environment() -> None:
    with pytest.raises(TaskError, match="nothing to verify"):
        assert isinstance(Misbehaving().verify({}, "", "stop"), Verdict)

"""Environment children: rollouts side by side, and what hangs, raises or dies costs no other rollout its outcome."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.generator.verifying.test_verifier_pool import _answer_pipes, _start_a_family
from vcppo.common.config import TaskConfig
from vcppo.common.environments.environment import Environment, Observation
from vcppo.common.environments.told import Told, acted, opening
from vcppo.common.errors import EXIT_USAGE
from vcppo.common.tasks import Problem, TaskError, Verdict, load_task
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


def polite(answer: Mapping[str, object], response: str, finish_reason: str) -> float:
    while response == "hang":
        time.sleep(0.1)
    if response == "raise":
        raise ValueError("no")
    return float(response.count("please"))


def calls(answer: Any, response: str, finish_reason: str, messages: Sequence[Mapping[str, Any]]) -> float:
    """Seen by who said what: a policy that writes the tool's words does not count."""
    assert messages[-1]["content"] == response.rpartition("\n")[2] and finish_reason == "length"
    return sum(each["role"] == "tool" for each in messages) + float(answer["more"])


FUNCTIONS: dict[str, Any] = {
    "rewards": [{"name": f"{HERE}:polite", "weight": 0.5}, {"name": f"{HERE}:calls", "weight": 0.25}],
    "format_pattern": "tool: 4$",
}


def told(*turns: str) -> Told:
    between = [[acted(text), {"role": "tool", "content": "tool: 4"}] for text in turns[:-1]]
    return Told.of("p", turns, [opening("p"), *(each for two in between for each in two), acted(turns[-1])])


def test_functions_see_what_the_policy_wrote_in_a_child_of_their_own() -> None:
    async def body(pool: EnvironmentPool) -> None:
        verdict = Verdict("correct", None, 0.75)
        found = await pool.graded(verdict, {"more": 3}, "length", told("please look", "please, 4"))
        assert found == ("correct", None, 0.75, {"polite": 2.0, "calls": 4.0, "format": 0.0})
        async with pool.open() as session:
            await session.reset({"name": "a"})
            late, raised = await asyncio.gather(
                *(pool.graded(verdict, {"more": 3}, "length", told(text)) for text in ("hang", "raise"))
            )
            assert (late, raised) == (Verdict("timeout", None), Verdict("crash", None))
            assert (await session.step("go")).observation.content == "a 1"  # its child has nothing to do with it
        for fault in (Verdict("crash", None), Verdict("timeout", None)):
            assert await pool.graded(fault, {"more": 3}, "length", told("hang")) == fault  # nobody is asked

    run("Misbehaving", body, **FUNCTIONS)


def test_without_functions_a_verdict_stays_as_it_is() -> None:
    async def body(pool: EnvironmentPool) -> None:
        assert not pool.tells
        assert await pool.graded(Verdict("wrong", None, 0.5), {}, "stop", told("x")) == Verdict("wrong", None, 0.5)

    run("Slow", body)


class Looking(Slow):
    """Says which keys it sees."""

    async def step(self, action: str) -> Observation:
        names = ("VCPPO_REWARD_SERVICE_KEY", "OPENAI_API_KEY")
        return Observation(" ".join(name for name in names if name in os.environ))


def test_the_key_of_a_reward_source_is_not_the_environment_s_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VCPPO_REWARD_SERVICE_KEY", "sesame")
    monkeypatch.setenv("OPENAI_API_KEY", "mine")

    async def body(pool: EnvironmentPool) -> str:
        async with pool.open() as session:
            await session.reset({})
            return str((await session.step("look")).observation.content)

    settings: dict[str, Any] = {"reward_service": {"url": "http://127.0.0.1:1/"}, "reward_weights": {"source": 1.0}}
    assert run("Looking", body, **settings) == "OPENAI_API_KEY"  # with no judge that one is the user's


def test_a_reward_source_needs_its_place_among_the_rewards() -> None:
    source: dict[str, Any] = {"judge": {"url": "http://127.0.0.1:1/v1", "model": "m"}}
    weighted = {**source, "reward_weights": {"source": 0.5}}
    with pytest.raises(TaskError, match=r"task.judge.url: look_up has several turns.*task.reward_weights.source"):
        load_task(TaskConfig.model_validate({"name": "look_up", **source}))
    load_task(TaskConfig.model_validate({"name": "look_up", **weighted}))
    with pytest.raises(TaskError, match=r"task.reward_weights.source = 0.5: .* of one turn: take"):
        load_task(TaskConfig.model_validate({"name": "chain_arithmetic", **weighted}))
    load_task(TaskConfig.model_validate({"name": "chain_arithmetic", **source}))


def test_nobody_verifies_an_environment() -> None:
    with pytest.raises(TaskError, match="nothing to verify"):
        assert isinstance(Misbehaving().verify({}, "", "stop"), Verdict)

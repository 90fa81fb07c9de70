"""Rollouts of agents through the worker, on a real store and transport, with a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.integration.conftest import RedisServer
from tests.integration.generator.test_generator import Bench
from tests.integration.rig.worker_beside import at_work
from tests.unit.common.environments.test_turn_text import CHAT
from tests.unit.generator.turns.test_agents import HERE, ISSUED, Saying
from vcppo.common.records.trajectory import Prompt, Trajectory
from vcppo.common.records.wire import decode_trajectory, encode_trajectory
from vcppo.common.store.ledger import BufferEntry
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.judges import make_judges
from vcppo.learner.buffer.door import Door


class Engine(Saying):
    """`Saying`, with what a worker asks of an engine."""

    is_dead, vocabulary, backend = False, 300, "gloo"

    async def generate(self, prompt: Prompt, hear: Any = None, *, turns: Any = None) -> Any:
        await asyncio.sleep(0.005)
        made = await super().generate(prompt)
        return replace(made, version_spans=(made.version_spans[0]._replace(version=0),))


class AgentsBench(Bench):
    """With `Engine` in place of vLLM."""

    def __init__(self, folder: Path, redis: RedisServer, task: dict[str, Any]) -> None:
        super().__init__(folder, redis)
        self.config = self.config.model_copy(update={"task": type(self.config.task).model_validate(task)})
        self.engine = self.worker._engine = Engine()
        self.pool: Any = make_judges(self.config.task)

    async def start(self) -> None:
        await self.pool.start()
        self.worker._player = self.worker._heartbeat._player = make_player(self.config, self.pool, CHAT)
        self.control.loaded(0)

    async def arrive(self, count: int) -> list[Trajectory]:
        """As `receive`, into the store by a buffer's rules."""
        found: list[Trajectory] = []
        async with asyncio.timeout(30):
            while len(found) < count:
                found += await self._arrived()
        return found

    async def _arrived(self) -> list[Trajectory]:
        received = await asyncio.to_thread(self.receiver.poll, 0.2)
        made = [decode_trajectory(item.payload) for item in received]
        for each in made:
            Door.of(self.config).check(each)
        entries = [BufferEntry.of(each, encode_trajectory(each)) for each in made]
        assert self.store.append(entries) == ["accepted"] * len(made)
        self.receiver.ack(received)
        return made


def prompts(*answers: dict[str, Any]) -> list[Prompt]:
    return [
        Prompt(f"rl-{i:08d}-0", f"rl-{i:08d}", 0, "t", ISSUED, answer, i + 5, 0, "rl", 200, is_open=True)
        for i, answer in enumerate(answers)
    ]


def run(folder: Path, redis: RedisServer, body: Callable[[AgentsBench], Awaitable[None]], **task: Any) -> AgentsBench:
    async def main() -> AgentsBench:
        bench = AgentsBench(folder, redis, {"name": f"{HERE}:Asking", **task})
        await bench.start()
        try:
            async with at_work(bench.worker):
                await body(bench)
        finally:
            await bench.pool.close()
        return bench

    return asyncio.run(main())


def test_what_an_agent_asked_is_trained_and_accounted_for(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: AgentsBench) -> None:
        two = {"role": "user", "content": "two"}
        bench.store.issue(prompts({"then": [two]}, {"raises": True}, {"asks": False}, {"compacts": True}))
        found = {each.prompt_id[-3]: each for each in await bench.arrive(3)}
        assert {number: (each.num_turns, each.outcome, each.reward) for number, each in found.items()} == {
            "0": (2, "correct", 0.5), "1": (1, "crash", -1.0), "3": (1, "correct", 0.5),
        }  # fmt: skip
        assert [len(found[number].segments) for number in "013"] == [0, 0, 1]
        every = [conversation for each in found.values() for conversation in each.conversations]
        assert all(each.prompt_token_ids.tolist() != ISSUED.tolist() for each in every)
        assert bench.worker._heartbeat.counters.num_tokens == sum(each.num_actions for each in found.values())
        await bench.until(lambda: bench.store.ledger().as_dict()["rejected"] == 1, "asked nothing, and not rejected")
        assert "before it had asked the policy" in bench.store.dead_letters()[0].reason

    bench = run(tmp_path, shared_redis, body)
    assert bench.store.ledger().is_exact and bench.store.ledger().as_dict()["buffered"] == 3
    bench.close()


@pytest.mark.parametrize("fault", ["weights", "child", "stop"])
def test_a_session_that_is_broken_off_is_over_and_its_prompt_is_accounted_for(
    tmp_path: Path, shared_redis: RedisServer, fault: str
) -> None:
    """Dropped for wrong weights, its child killed, its generator stopped: the old key opens nothing any more. After
    wrong weights it begins anew, and where its child died its turns so far are a crash."""
    keys: list[str] = []

    async def body(bench: AgentsBench) -> None:
        bench.store.issue(prompts({"seconds": 1.5}))
        await bench.until(lambda: bool(bench.engine.prompts), "not asked")
        (session,) = bench.pool.server._sessions.values()
        keys.append(session.endpoint.api_key)
        if fault == "stop":
            return
        if fault == "weights":
            await bench.worker.drop_in_flight()
        else:
            (child,) = bench.pool._children
            child._died("killed by the test")
        async with httpx.AsyncClient(timeout=20) as client:
            address, headers = f"{session.endpoint.base_url}/models", {"Authorization": f"Bearer {keys[0]}"}
            await bench.until(lambda: session not in bench.pool.server._sessions.values(), "still open")
            refused = await client.get(address, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (410, "session_over")
        (found,) = await bench.arrive(1)
        assert (found.outcome, found.num_turns) == ("crash" if fault == "child" else "correct", 1)

    bench = run(tmp_path, shared_redis, body)
    state = bench.store.ledger().as_dict()
    assert bench.store.ledger().is_exact and (state["queued"] if fault == "stop" else state["buffered"]) == 1
    assert keys and bench.pool.server._sessions == {}
    bench.close()

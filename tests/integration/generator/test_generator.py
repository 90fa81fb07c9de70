"""The rollout worker on a real store and transport with a scripted engine, and the process on bad input."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from tests.integration.conftest import RedisServer
from tests.integration.rig.worker_beside import at_work
from tests.paths import ROOT
from vcppo.common.config import VcppoConfig
from vcppo.common.errors import EXIT_FAILURE, EXIT_REFUSED
from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan
from vcppo.common.records.wire import WireError, decode_trajectory
from vcppo.common.store.run_store import Member, RunStore, Superseded
from vcppo.common.tasks import Problem, Task, Verdict, load_task
from vcppo.common.telemetry.metrics import MetricsWriter, read_metrics
from vcppo.common.transport import TrajectoryReceiver, TrajectorySender
from vcppo.common.transport.control import Callers
from vcppo.common.transport.ports import free_endpoint, free_port
from vcppo.generator.reward_sources.source import open_source
from vcppo.generator.rollout.parts import Generator
from vcppo.generator.rollout.rollout import RolloutWorker
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.generator.vllm_engine.engine import EngineError, Rollout
from vcppo.learner.buffer.door import Door


class ScriptedEngine:
    """Answers after `seconds`, or never when `hold` is set; knows when it is asked for too much at once."""

    is_dead = False
    vocabulary = 100
    backend = "gloo"

    def __init__(self) -> None:
        self.num_in_flight = 0
        self.most_in_flight = 0
        self.num_finished = 0
        self.hold = asyncio.Event()
        self.hold.set()
        self.refuse: set[str] = set()
        self.abort: set[str] = set()
        self.stop_string: str | None = None

    def turns(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def generate(self, prompt: Prompt, hear: Any = None, *, turns: Any = None) -> Rollout:
        if prompt.id in self.refuse:
            raise EngineError("vLLM refuses it: too long")
        self.num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.num_in_flight)
        try:
            await self.hold.wait()
            await asyncio.sleep(0.005)
        finally:
            self.num_in_flight -= 1
        self.num_finished += 1
        reason: Any = "stop"
        if prompt.id in self.abort:
            self.abort.discard(prompt.id)
            reason = "abort"
        tokens = np.asarray([5, 6, 1], np.int32)
        spans = (VersionSpan(0, 1), VersionSpan(1, 2))
        return Rollout(tokens, np.full(3, -0.5, np.float32), spans, reason, 0.005, self.stop_string)

    async def nothing(self, *_: Any) -> None:
        return

    pause = resume = shutdown_weight_transfer = nothing
    start_weight_update = update_weights = finish_weight_update = nothing

    async def canary(self, token_ids: Any, prompt_length: int) -> Any:
        return np.zeros(len(token_ids) - prompt_length, np.float32)


class Bench:
    """A worker with everything around it."""

    def __init__(self, folder: Path, redis: RedisServer, task: dict[str, Any] | None = None) -> None:
        endpoint = free_endpoint()
        self.config = VcppoConfig.model_validate(
            {
                "run": {"name": folder.name, "folder": str(folder)},
                "model": {"path": "unused"},
                "generator": {"max_in_flight": 4, "heartbeat_seconds": 0.2, "lease_seconds": 5.0},
                "transport": {"endpoints": [endpoint]},
                "launcher": {"stop_deadline_seconds": 10.0},
                "redis": {"url": redis.url},
                "task": task or {},
            }
        )
        self.store: RunStore = redis.store(folder.name)
        self.receiver = TrajectoryReceiver(endpoint, self.config.transport)
        self.sender = TrajectorySender([endpoint], "generator-0", self.config.transport, folder / "spool")
        self.metrics = MetricsWriter(folder, "generator-0", folder.name)
        self.engine: Any = ScriptedEngine()
        self.verifiers = VerifierPool(self.config.task)
        self.rewards = open_source(self.config)
        parts = Generator(
            self.config,
            "generator-0",
            self.engine,
            self.store,
            self.sender,
            self.verifiers,
            _Tokenizer(),
            self.metrics,
            rewards=self.rewards,
        )
        self.callers = Callers()
        server: Any = SimpleNamespace(endpoint="tcp://127.0.0.1:1", callers=self.callers)
        self.worker = RolloutWorker(parts, server)
        self.control = self.worker.control

    async def receive(self, count: int) -> list[Trajectory]:
        """The next `count` trajectories; they are expired in the store, as if a buffer had taken them away."""
        found: list[Trajectory] = []
        end = time.monotonic() + 30
        while len(found) < count:
            assert time.monotonic() < end, f"{len(found)} of {count} came"
            received = await asyncio.to_thread(self.receiver.poll, 0.2)
            found += [decode_trajectory(item.payload) for item in received]
            self.receiver.ack(received)
        self.store.expire([t.prompt_id for t in found], "test")
        return found

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < end, what
            await asyncio.sleep(0.02)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.metrics.close()
        self.store.close()


class _Tokenizer:
    def __init__(self) -> None:
        self._tokenizer = load_task(VcppoConfig.model_validate({"model": {"path": "x"}}).task).tokenizer()

    def decode(self, ids: list[int], **_: Any) -> str:
        assert self._tokenizer is not None
        return str(self._tokenizer.decode(ids))


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [
        Prompt(
            id=f"rl-{start + i:04d}",
            group_id="g",
            sample_index=i,
            task="chain_arithmetic",
            token_ids=np.arange(2, 31, dtype=np.int32),
            answer={"answer": "12"},
            seed=i,
            issue_version=0,
            purpose="rl",
            max_response_tokens=8,
        )
        for i in range(count)
    ]


def run(
    folder: Path,
    redis: RedisServer,
    body: Callable[[Bench], Awaitable[None]],
    opened: bool = True,
    task: dict[str, Any] | None = None,
) -> Bench:
    """Run the worker beside `body`, then stop it. Its store stays open for the caller to look at."""

    async def main() -> Bench:
        bench = Bench(folder, redis, task)
        await bench.verifiers.start()
        if opened:
            bench.control.loaded(0)
        try:
            async with at_work(bench.worker):
                await body(bench)
        finally:
            await bench.verifiers.close()
            if bench.rewards is not None:
                await bench.rewards.close()
        return bench

    return asyncio.run(main())


def test_every_prompt_comes_back_verified_and_never_too_many_at_once(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(20))
        found = await bench.receive(20)
        assert {t.prompt_id for t in found} == {p.id for p in prompts(20)}
        assert bench.engine.most_in_flight == 4
        one = found[0]
        assert one.outcome in ("wrong", "unparsable")
        assert one.reward == -1.0
        assert one.version_spans == (VersionSpan(0, 1), VersionSpan(1, 2))
        assert one.behaviour_log_probs.tolist() == [-0.5, -0.5, -0.5]
        assert one.action_mask.all()
        assert set(one.timings) == {"generate", "verify"}
        await bench.until(lambda: bench.store.members("generator") != [], "no member entry")
        (member,) = bench.store.members("generator")
        assert (member.id, member.policy_version, member.epoch) == ("generator-0", 0, bench.control.epoch)

    bench = run(tmp_path, shared_redis, body)
    assert bench.store.members("generator") == []
    assert bench.store.ledger().is_exact
    bench.close()
    lines = read_metrics(tmp_path / "metrics" / "generator-0.jsonl")
    assert {"generator/tokens_per_second", "generator/in_flight", "generator/queue_wait"} <= set(lines[-1])


class Steps(Task):
    """Counts characters, whatever was asked; `ScriptedEngine` says two and an end token."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return []

    def verify(self, answer: Any, response: str, finish_reason: str) -> Verdict:
        return Verdict("wrong", response, 0.25, {"length": len(response)})


def evenness(answer: Any, response: str, finish_reason: str) -> float:
    return 0.5


def test_a_graded_reward_and_its_parts_pass_the_door_of_the_buffer(tmp_path: Path, shared_redis: RedisServer) -> None:
    task = {
        "name": f"{__name__}:Steps", "rewards": [{"name": f"{__name__}:evenness", "weight": 0.5}], "length_cost": 0.125,
        "reward_weights": {"format": 0.25}, "format_pattern": "^",
    }  # fmt: skip

    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(3))
        for found in await bench.receive(3):
            assert found.outcome == "wrong" and found.reward == 0.25 + 0.25 + 0.25 - 0.375
            assert found.components == {
                "base": 0.25, "length": 2.0, "evenness": 0.5, "format": 1.0, "length_cost": -0.375,
            }  # fmt: skip
            Door.of(bench.config).check(found)
            with pytest.raises(WireError, match=r"^reward: 0.5 for outcome 'wrong', its components"):
                Door.of(bench.config).check(replace(found, reward=0.5))

    run(tmp_path, shared_redis, body, task=task).close()


def test_the_verifier_sees_what_stands_before_the_stop_string_and_all_tokens_are_sent(
    tmp_path: Path, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, texts = VerifierPool.verify, []

    async def seeing(self: VerifierPool, answer: Any, text: str, reason: Any, messages: Any = ()) -> Any:
        texts.append(text)
        return await judge(self, answer, text, reason, messages)

    monkeypatch.setattr(VerifierPool, "verify", seeing)

    async def body(bench: Bench) -> None:
        whole = _Tokenizer().decode([5, 6, 1])
        bench.store.issue(prompts(1))
        await bench.receive(1)
        bench.engine.stop_string = whole[1]
        bench.store.issue(prompts(1, start=1))
        (found,) = await bench.receive(1)
        assert texts == [whole, whole[: whole.rindex(whole[1])]]
        assert found.response_token_ids.tolist() == [5, 6, 1] and found.action_mask.all()
        assert found.finish_reason == "stop"

    run(tmp_path, shared_redis, body).close()


def test_stopping_returns_unfinished_prompts_at_once(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.engine.hold.clear()
        bench.store.issue(prompts(6))
        await bench.until(lambda: bench.engine.num_in_flight == 4, "prompts are not leased")
        assert bench.store.ledger().as_dict()["leased"] == 4

    bench = run(tmp_path, shared_redis, body)
    counts = bench.store.ledger().as_dict()
    assert counts["queued"] == 6
    assert counts["leased"] == 0
    bench.close()


def test_an_aborted_rollout_is_not_sent_and_its_prompt_comes_again(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.engine.abort = {"rl-0001"}
        bench.store.issue(prompts(3))
        found = await bench.receive(3)
        assert sorted(t.prompt_id for t in found) == ["rl-0000", "rl-0001", "rl-0002"]

    run(tmp_path, shared_redis, body).close()


def test_a_prompt_the_engine_refuses_is_rejected_for_good(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.engine.refuse = {"rl-0001"}
        bench.store.issue(prompts(3))
        await bench.receive(2)
        await bench.until(lambda: bench.store.ledger().as_dict()["rejected"] == 1, "not rejected")
        assert bench.store.ledger().is_exact

    run(tmp_path, shared_redis, body).close()


def test_a_rollout_that_waits_for_its_verdict_holds_no_place(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        judged = asyncio.Event()
        judge = bench.verifiers.verify

        async def slow(*args: Any) -> Any:
            await judged.wait()
            return await judge(*args)

        bench.verifiers.verify = slow  # type: ignore[method-assign]
        bench.store.issue(prompts(20))
        await bench.until(lambda: bench.engine.num_finished == 8, "places are held while verdicts are awaited")
        await asyncio.sleep(0.3)
        assert bench.store.ledger().as_dict()["leased"] == 8  # as many again as there are places, and no more
        judged.set()
        assert len(await bench.receive(20)) == 20

    run(tmp_path, shared_redis, body).close()


def test_prompts_dropped_before_their_tasks_began_leave_their_places(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(4))
        lease = bench.worker._lease

        async def lease_and_drop(free: int) -> None:
            await lease(free)
            bench.worker._lease = lease  # type: ignore[method-assign]
            await bench.worker.drop_in_flight()  # the canary failed just then

        bench.worker._lease = lease_and_drop  # type: ignore[method-assign]
        bench.control.loaded(0)
        assert len(await bench.receive(4)) == 4

    run(tmp_path, shared_redis, body, opened=False).close()


def test_a_prompt_dropped_by_the_learner_is_abandoned(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        bench.engine.hold.clear()
        bench.store.issue(prompts(2))
        await bench.until(lambda: bench.engine.num_in_flight == 2, "prompts are not leased")
        bench.store.expire(["rl-0000"], "straggler")
        await bench.until(lambda: bench.engine.num_in_flight == 1, "still generating for an expired prompt")
        bench.engine.hold.set()
        assert [t.prompt_id for t in await bench.receive(1)] == ["rl-0001"]

    run(tmp_path, shared_redis, body).close()


def test_during_an_update_nothing_begins_and_until_its_canary_has_passed_nothing_is_sent(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    async def body(bench: Bench) -> None:
        bench.store.issue(prompts(2))
        await asyncio.sleep(0.5)
        assert bench.store.ledger().as_dict()["queued"] == 2
        bench.control.loaded(0)
        assert len(await bench.receive(2)) == 2
        call = bench.control.handlers()
        await call["pause"]()
        bench.store.issue(prompts(2, start=2))  # a lease that was under way takes them
        await asyncio.sleep(0.5)
        assert bench.engine.num_in_flight == 0
        assert bench.engine.num_finished == 2
        await call["start_weight_update"]()
        tensors = {"names": ["w"], "dtype_names": ["float32"], "shapes": [[2]], "chunks": [1]}
        await call["update_weights"](update_info=tensors)
        await call["finish_weight_update"](policy_version=1)
        await call["canary"](token_ids=np.arange(4, dtype=np.int32), prompt_length=2)
        await bench.until(lambda: bench.engine.num_finished == 4, "places stay empty until the canary is looked at")
        assert await asyncio.to_thread(bench.receiver.poll, 0.5) == []
        await call["abort"]()  # it failed: what is in flight goes back
        assert await asyncio.to_thread(bench.receiver.poll, 0.5) == []
        counts = bench.store.ledger().as_dict()
        assert counts["queued"] + counts["leased"] == 2  # the lease that was under way may have them again
        assert bench.engine.num_in_flight == 0
        assert bench.engine.num_finished == 4
        bench.control.loaded(2)
        assert len(await bench.receive(2)) == 2

    run(tmp_path, shared_redis, body, opened=False).close()


def start(folder: Path, **tree: Any) -> subprocess.CompletedProcess[str]:
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump({"run": {"name": "bad", "folder": str(folder)}} | tree))
    return subprocess.run(
        [sys.executable, "-m", "vcppo.generator", "--config", str(config), "--id", "generator-0"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        check=False,
    )


def fatal_line(done: subprocess.CompletedProcess[str], exit_code: int) -> str:
    assert done.returncode == exit_code, done.stderr
    fatal = [line for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "fatal"]
    assert len(fatal) == 1
    assert "Traceback" not in done.stdout + done.stderr
    return str(fatal[0]["error"])


@pytest.mark.parametrize("path", ["/no/such/model", "owner/no-such-model"])
def test_an_unknown_model_is_one_clear_line(tmp_path: Path, path: str) -> None:
    began = time.monotonic()
    assert path in fatal_line(start(tmp_path, model={"path": path}), EXIT_REFUSED)
    assert time.monotonic() - began < 40  # before vLLM is started


def test_no_redis_is_one_clear_line(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    url = f"redis://127.0.0.1:{free_port()}/0"
    tree = {
        "redis": {"url": url, "connect_deadline_seconds": 1.0},
        "model": {"path": str(model)},
        "transport": {"endpoints": [f"tcp://127.0.0.1:{free_port()}"]},
    }
    assert url in fatal_line(start(tmp_path, **tree), EXIT_FAILURE)


def test_what_is_leased_while_weights_are_lost_is_handed_back(tmp_path: Path, shared_redis: RedisServer) -> None:
    """The call for prompts was on its way when the canary failed: they would wait for weights that may never come."""

    async def body(bench: Bench) -> None:
        await asyncio.sleep(0.3)  # it waits for prompts by now
        bench.control.need_sync("its canary failed")
        bench.store.issue(prompts(3))
        await asyncio.sleep(1.5)  # longer than a lease call waits
        assert bench.store.ledger().queued == 3
        bench.control.loaded(0)
        assert len(await bench.receive(3)) == 3

    run(tmp_path, shared_redis, body).close()


def test_prompts_of_a_version_it_was_never_sent_are_handed_back(tmp_path: Path, shared_redis: RedisServer) -> None:
    """Cut off from the store during a broadcast: what old weights make of new prompts may be too stale to train."""

    async def body(bench: Bench) -> None:
        epoch = bench.control.epoch
        bench.store.issue([replace(prompt, issue_version=1) for prompt in prompts(2)])
        await bench.until(lambda: not bench.control.gate.may_send, "it goes on with old weights")
        await bench.until(lambda: bench.store.ledger().queued == 2, "not handed back")
        assert bench.control.policy_version == -1
        assert bench.control.epoch > epoch
        assert bench.engine.most_in_flight == 0
        bench.control.loaded(1)
        assert len(await bench.receive(2)) == 2

    run(tmp_path, shared_redis, body).close()


def test_one_that_has_a_successor_ends_and_hands_back_nothing_that_is_not_its_own(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    """Its successor works under the same name: what is leased to the name is the successor's now."""

    async def body(bench: Bench) -> None:
        bench.store.enter("generator-0")
        bench.engine.hold.clear()
        bench.store.issue(prompts(1))
        await bench.until(lambda: bench.engine.num_in_flight == 1, "the prompt")
        successor = shared_redis.store(tmp_path.name)
        successor.enter("generator-0")
        successor.register_member(Member("generator-0", "generator", epoch=7), 60.0)
        bench.control.changed.set()  # its next heartbeat
        await bench.until(lambda: bench.worker._failure is not None, "its end")

    with pytest.raises(Superseded, match=r"generator-0 number 1 .* superseded by generator-0 number 2"):
        run(tmp_path, shared_redis, body)
    store = shared_redis.store(tmp_path.name)
    assert store.ledger().leased == 1
    assert [(member.id, member.epoch) for member in store.members("generator")] == [("generator-0", 7)]


def test_it_hears_of_a_new_learner_with_its_heartbeat(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: Bench) -> None:
        learner = shared_redis.store(tmp_path.name)
        for number in (1, 2):
            learner.enter("learner")
            bench.control.changed.set()
            await bench.until(lambda number=number: bench.callers.newest == number, "a heartbeat")  # type: ignore[misc]

    run(tmp_path, shared_redis, body)

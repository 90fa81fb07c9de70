"""Rollouts of several turns through the worker, on a real store and transport, with a scripted engine."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from tests.integration.conftest import RedisServer
from tests.integration.generator.test_generator import Bench, ScriptedEngine
from tests.integration.rig.reward_server import RewardServer
from tests.integration.rig.worker_beside import at_work
from vcppo.common.environments.environment import Environment, Observation, ToolUse
from vcppo.common.environments.look_up import LookUp
from vcppo.common.records.trajectory import Prompt, Trajectory, VersionSpan
from vcppo.common.tasks import Problem, encode_prompt
from vcppo.generator.reward_sources.source import open_source
from vcppo.generator.turns.environment_pool import EnvironmentPool
from vcppo.generator.turns.play import Player
from vcppo.generator.verifying.scorer import Scorer
from vcppo.generator.vllm_engine.engine import Rollout
from vcppo.learner.batching.turn_rewards import place_rewards
from vcppo.learner.buffer.door import Door

HERE = "tests.integration.generator.test_turns"
TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=LookUp().tokenizer(), eos_token="<eos>", pad_token="<pad>")
EOS = int(TOKENIZER.eos_token_id)


class Tools(Environment):
    """Two turns; its answer to the first takes as long as the problem says, or ends as it says."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem("000?A", {})] * count

    async def reset(self, answer: Mapping[str, Any]) -> None:
        self.says = answer
        if answer.get("reset"):
            raise ValueError("no such problem")

    async def step(self, action: str) -> Observation:
        await asyncio.sleep(self.says.get("seconds", 0))
        if self.says.get("raises"):
            raise ValueError("no such tool")
        use = ToolUse(2, 1, 0.5) if self.says.get("calls") else ToolUse()
        return Observation(self.says.get("text", "7"), 0.25, done=action != "A", tools=use)


class Copying(ScriptedEngine):
    """Says the last token of the prompt once more, then EOS."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[Prompt] = []
        self.renews = False  # the weights become a newer version before each turn

    async def generate(self, prompt: Prompt, hear: Any = None, *, turns: Any = None) -> Rollout:
        self.prompts.append(prompt)
        made = await super().generate(prompt)
        tokens = np.asarray([prompt.token_ids[-1], EOS], np.int32)
        spans = (VersionSpan(len(self.prompts) - 1 if self.renews else 0, 2),)
        reason = made.finish_reason if prompt.max_response_tokens > 2 else "length"
        return Rollout(tokens, np.full(2, -0.5, np.float32), spans, reason, 0.005, end_ids=(EOS,))


class TurnsBench(Bench):
    """With `Copying` in place of vLLM."""

    def __init__(self, folder: Path, redis: RedisServer, task: dict[str, Any]) -> None:
        super().__init__(folder, redis)
        self.config = self.config.model_copy(update={"task": type(self.config.task).model_validate(task)})
        self.rewards = open_source(self.config)
        self.worker._scorer = Scorer(self.config, None, self.rewards)
        self.engine = self.worker._engine = Copying()
        self.pool = EnvironmentPool(self.config.task)

    async def start(self) -> None:
        await self.pool.start()
        self.worker._player = self.worker._heartbeat._player = Player(self.config, self.pool, TOKENIZER)
        self.control.loaded(0)


def prompts(*answers: dict[str, object], text: str = "000?A", room: int = 16) -> list[Prompt]:
    return [
        Prompt(f"rl-{i:08d}-0", f"rl-{i:08d}", 0, "t", encode_prompt(TOKENIZER, text), answer, i + 5, 0, "rl", room)
        for i, answer in enumerate(answers)
    ]


def run(
    folder: Path, redis: RedisServer, body: Callable[[TurnsBench], Awaitable[None]], name: str = "Tools", **task: Any
) -> TurnsBench:
    async def main() -> TurnsBench:
        bench = TurnsBench(folder, redis, {"name": f"{HERE}:{name}" if name == "Tools" else name, **task})
        await bench.start()
        try:
            async with at_work(bench.worker):
                await body(bench)
        finally:
            await bench.pool.close()
            if bench.rewards is not None:
                await bench.rewards.close()
        return bench

    return asyncio.run(main())


def test_two_turns_of_the_built_in_example_arrive_as_one_trajectory(tmp_path: Path, shared_redis: RedisServer) -> None:
    problem = LookUp().problems("train", 0, 0, 1)[0]

    async def body(bench: TurnsBench) -> None:
        bench.engine.renews = True
        bench.store.issue(prompts(problem.answer, text=str(problem.prompt)))
        (found,) = await bench.receive(1)
        letter = str(problem.answer["letter"])
        digit = str(problem.answer["digits"])["ABCDEF".index(letter)]
        assert TOKENIZER.decode(found.response_token_ids) == f"{letter}<eos>{digit}{digit}<eos>"
        assert found.action_mask.tolist() == [True, True, False, True, True]
        assert found.behaviour_log_probs.tolist() == [-0.5, -0.5, 0.0, -0.5, -0.5]
        assert found.version_spans == (VersionSpan(0, 3), VersionSpan(1, 2))
        assert (found.outcome, found.reward, found.finish_reason) == ("correct", 1.0, "stop")
        assert found.components == {"base": 1.0} and found.turn_rewards == (0.0, 1.0)
        assert set(found.timings) == {"generate", "environment"}
        Door.of(bench.config).check(found)
        first, second = bench.engine.prompts
        assert second.token_ids.tolist() == [*first.token_ids, *found.response_token_ids[:3]]
        assert (first.seed, second.max_response_tokens) == (5, 13) and second.seed != 5

    run(tmp_path, shared_redis, body, "look_up").close()


def test_while_a_tool_runs_its_place_is_another_sequences(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts(*({"seconds": 3} for _ in range(4)), *({} for _ in range(8))))
        began = time.monotonic()
        found = await bench.receive(8)
        assert time.monotonic() - began < 2.5 and all(len(t.response_token_ids) == 5 for t in found)
        assert bench.engine.most_in_flight <= 4
        assert len(await bench.receive(4)) == 4

    bench = run(tmp_path, shared_redis, body)
    assert bench.store.ledger().is_exact
    bench.close()


def test_stopping_in_the_middle_of_a_call_hands_the_prompt_back(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts({"seconds": 4}))
        await bench.until(lambda: bench.engine.num_finished == 1, "no first turn")
        await asyncio.sleep(0.1)

    bench = run(tmp_path, shared_redis, body)
    assert bench.store.ledger().as_dict()["queued"] == 1
    assert bench.receiver.poll(0.3) == []
    bench.close()


def test_weights_that_are_wrong_drop_a_rollout_whose_tool_runs(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts({"seconds": 1}))
        await bench.until(lambda: bench.engine.num_finished == 1, "no first turn")
        await bench.worker.drop_in_flight()
        assert bench.receiver.poll(0.1) == []
        (found,) = await bench.receive(1)  # once more from the beginning
        assert bench.engine.num_finished == 3 and found.action_mask.sum() == 4

    run(tmp_path, shared_redis, body).close()


def test_a_turn_that_is_broken_off_hands_the_prompt_back(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        (prompt,) = prompts({"seconds": 0.5})
        bench.store.issue([prompt])
        await bench.until(lambda: bench.engine.num_finished == 1, "no first turn")
        bench.engine.abort = {prompt.id}
        await bench.receive(1)
        assert bench.engine.num_finished == 4  # two turns, the second for nothing, and two

    run(tmp_path, shared_redis, body).close()


def test_a_child_that_dies_hands_its_other_rollouts_back(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts({"seconds": 0.5}))
        await bench.until(lambda: bench.engine.num_finished == 1, "no first turn")
        (child,) = bench.pool._children
        child._family.kill_soon()
        (found,) = await bench.receive(1)
        assert found.outcome in ("crash", "wrong", "correct")

    bench = run(tmp_path, shared_redis, body)
    assert bench.store.ledger().is_exact
    bench.close()


@pytest.mark.parametrize(
    ("answer", "outcome", "reward"),
    [({"raises": True}, "crash", -1.0), ({"seconds": 9}, "timeout", -1.0)], ids=["raises", "late"],
)  # fmt: skip
def test_a_fault_of_the_environment_is_an_outcome(
    tmp_path: Path, shared_redis: RedisServer, answer: dict[str, object], outcome: str, reward: float
) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts(answer))
        (found,) = await bench.receive(1)
        assert (found.outcome, found.reward, len(found.response_token_ids)) == (outcome, reward, 2)
        Door.of(bench.config).check(found)

    run(tmp_path, shared_redis, body, verifier_timeout_seconds=1.0).close()


def test_a_problem_whose_state_can_not_be_made_is_rejected(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts({"reset": True}, {}))
        await bench.receive(1)
        await bench.until(lambda: bench.store.ledger().as_dict()["rejected"] == 1, "not rejected")

    run(tmp_path, shared_redis, body).close()


@pytest.mark.parametrize(
    ("task", "room", "answer"),
    [({"max_turns": 1}, 16, {}), ({}, 6, {"text": "1234"}), ({"max_rollout_seconds": 0.2}, 16, {"seconds": 0.4})],
    ids=["turns", "tokens", "time"],
)  # fmt: skip
def test_a_rollout_is_cut_by_turns_tokens_and_time(
    tmp_path: Path, shared_redis: RedisServer, task: dict[str, Any], room: int, answer: dict[str, object]
) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts(answer, room=room))
        (found,) = await bench.receive(1)
        assert (found.finish_reason, found.outcome, found.reward) == ("length", "wrong", 0.25)
        assert found.action_mask.tolist() == [True, True]

    run(tmp_path, shared_redis, body, **task).close()


def test_calls_of_tools_are_counted_by_rollout_and_by_generator(tmp_path: Path, shared_redis: RedisServer) -> None:
    async def body(bench: TurnsBench) -> None:
        bench.store.issue(prompts({"calls": True}, {}))
        found = {each.prompt_id: each.timings for each in await bench.receive(2)}
        assert set(found["rl-00000001-0"]) == {"generate", "environment"}
        assert {name: found["rl-00000000-0"][name] for name in ("tools", "tool_calls", "tool_errors")} == {
            "tools": 1.0, "tool_calls": 4.0, "tool_errors": 2.0,
        }  # fmt: skip
        assert bench.pool.counts.tools == ToolUse(4, 2, 1.0)

    run(tmp_path, shared_redis, body).close()


def shortness(answer: Mapping[str, Any], response: str, finish_reason: str, messages: Sequence[Any]) -> float:
    """Late, or failing, where the problem says so."""
    while answer.get("late"):
        time.sleep(0.1)
    if answer.get("fails"):
        raise ValueError("no")
    assert response == "\n".join(each["content"] for each in messages if each["role"] == "assistant")
    return 1 / len(response)


GRADED: dict[str, Any] = {
    "rewards": [{"name": f"{HERE}:shortness", "weight": 0.5}], "format_pattern": r"^A\n7$",
    "reward_weights": {"format": 0.25, "source": 0.125}, "length_cost": 0.0625, "verifier_timeout_seconds": 1.0,
}  # fmt: skip


def service(server: RewardServer) -> dict[str, Any]:
    quick = {"batch_size": 4, "back_off_seconds": 0.05, "breaker_failures": 2, "breaker_seconds": 0.2}
    return {**GRADED, "reward_service": {"url": f"{server.url}/reward", "send_messages": True, **quick}}


def graded(number: int, **answer: Any) -> Prompt:
    """Whose number is what the server gives (`reward_of`)."""
    (prompt,) = prompts(answer)
    name = f"rl-{number:08d}"
    return Prompt(f"{name}-512", name, 0, "t", prompt.token_ids, answer, 5, 0, "rl", 16)


def test_functions_format_length_and_a_service_stand_on_the_last_turn(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    server = RewardServer()
    server.modes = ["drop", "500", "nan"]  # what goes wrong on the way changes no reward

    async def body(bench: TurnsBench) -> None:
        bench.store.issue([graded(0)])
        (found,) = await bench.receive(1)
        assert TOKENIZER.decode(found.response_token_ids) == "A<eos>77<eos>"
        assert found.components == {
            "base": 0.5, "shortness": 1 / 3, "format": 1.0, "source": 0.5, "length_cost": -0.0625 * 5,
        }  # fmt: skip
        assert found.turn_rewards == (0.25, 0.25)
        assert found.reward == math.fsum([0.5, 0.5 / 3, 0.25, 0.125 * 0.5, -0.0625 * 5])
        assert found.outcome == "correct" and {"generate", "environment", "verify"} <= found.timings.keys()
        Door.of(bench.config).check(found)
        placed = place_rewards([found], np.asarray([0, 4]))
        assert placed.earlier.tolist() == [0.0, 0.25, 0.0, 0.0] and placed.last[0] == np.float32(found.reward - 0.25)
        server.outcome = "wrong"
        bench.store.issue([graded(1)])
        assert (await bench.receive(1))[0].outcome == "wrong"

    run(tmp_path, shared_redis, body, **service(server)).close()
    server.close()
    item = server.requests[-1]["items"][0]
    said = [("user", "000?A"), ("assistant", "A"), ("user", "7"), ("assistant", "7")]
    assert (item["prompt"], item["response"]) == ("000?A", "A\n7")
    assert [(each["role"], each["content"]) for each in item["messages"]] == said


def test_what_fails_at_the_end_of_a_rollout_is_an_outcome_and_never_trained(
    tmp_path: Path, shared_redis: RedisServer
) -> None:
    server = RewardServer()
    server.nan = {"rl-00000004-512"}

    async def body(bench: TurnsBench) -> None:
        server.down()
        bench.store.issue([graded(0), graded(1, fails=True), graded(2, late=True), graded(3, raises=True), graded(4)])
        assert bench.rewards is not None
        found = {each.prompt_id: each for each in await bench.receive(3)}
        crash = -1 - 0.0625 * 5
        expected = {"1": ("crash", crash), "2": ("timeout", crash), "3": ("crash", -1 - 0.0625 * 2)}
        assert {name[10]: (each.outcome, each.reward) for name, each in found.items()} == expected
        assert all(each.components.keys() == {"length_cost"} and not each.turn_rewards for each in found.values())
        assert bench.rewards.away_seconds > 0 and bench.store.ledger().leased == 2  # they wait for the service
        server.up()
        (last,) = await bench.receive(1)
        await bench.until(lambda: bench.store.ledger().rejected == 1, "not rejected")
        each: Trajectory
        for each in (*found.values(), last):
            Door.of(bench.config).check(each)

    bench = run(tmp_path, shared_redis, body, **service(server))
    assert bench.store.ledger().is_exact
    bench.close()
    server.close()

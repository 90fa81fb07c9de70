"""Agents in a real child, asking over HTTP; the engine is scripted."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from tests.paths import ROOT
from tests.unit.common.environments.test_turn_text import CHAT, END, TOLD, decoded, tokenizer
from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.environments.command_agent import read_reward
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.tasks import Problem, TaskError, Verdict, encode_prompt, load_task
from vcppo.generator.turns.agent_play import AgentPlayer, make_player
from vcppo.generator.turns.environment_pool import RolloutLost
from vcppo.generator.turns.judges import Respondent, make_judges
from vcppo.generator.turns.play import NotBegun, Played
from vcppo.generator.vllm_engine.engine import Rollout
from vcppo.generator.vllm_engine.stepper import Hear

HERE = "tests.unit.generator.turns.test_agents"
ISSUED = encode_prompt(CHAT, [{"role": "user", "content": "issued"}])
TOOLED = tokenizer(TOLD)
TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


class Asking(Agent):
    """Asks once, then does what the problem says."""

    def problems(self, split: str, seed: int, start: int, count: int) -> list[Problem]:
        return [Problem([{"role": "user", "content": "issued"}], {})] * count

    async def run(self, answer: Mapping[str, Any], endpoint: Endpoint) -> float | Verdict:
        client = openai.AsyncOpenAI(base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=20)
        chat: list[Any] = [{"role": "user", "content": "one"}]
        if answer.get("asks", True):
            chat.append(await self._ask(client, chat, **answer.get("with", {})))
        await asyncio.sleep(answer.get("seconds", 0))
        if answer.get("raises"):
            raise ValueError("no such tool")
        for words in answer.get("then", []):
            chat.append(words)
            chat.append(await self._ask(client, chat, **answer.get("with", {})))
        if answer.get("compacts"):
            await self._ask(client, [{"role": "user", "content": "all so far"}])
        if "outcome" in answer:
            return Verdict(answer["outcome"], None, answer.get("number"))
        return answer.get("reward", 0.5)  # type: ignore[no-any-return]

    async def _ask(self, client: openai.AsyncOpenAI, chat: list[Any], **given: Any) -> Any:
        if given.get("stream"):
            stream = await client.chat.completions.create(model="policy", messages=chat, **given)
            pieces = []
            async for chunk in stream:
                pieces.append(chunk.choices[0].delta.content or "")
                if chat[-1]["content"] == "leave":
                    await stream.close()
                    chat.pop()
                    return await self._ask(client, [*chat, {"role": "user", "content": "back"}], **given)
            assert len(pieces) > 2, pieces
            return {"role": "assistant", "content": "".join(pieces)}
        return (await client.chat.completions.create(model="policy", messages=chat, **given)).choices[0].message


class Saying:
    """An engine that says these texts one after the other, and the last of them from then on."""

    def __init__(self, *texts: str) -> None:
        self.texts, self.prompts = texts or ("yes",), list[Prompt]()
        self.sampled = asyncio.Event()
        self.was_heard: list[bool] = []

    def turns(self) -> AbstractContextManager[None]:
        return nullcontext()

    async def generate(self, prompt: Prompt, /, hear: Hear | None = None, *, turns: Any = None) -> Rollout:
        self.prompts.append(prompt)
        self.sampled.set()
        text = self.texts[min(len(self.prompts), len(self.texts)) - 1]
        tokens = np.asarray([*CHAT(text)["input_ids"], END], np.int32)
        self.was_heard.append(hear is not None)
        for count in range(1, len(tokens)) if hear is not None else ():
            hear(tokens[:count].tolist())
            await asyncio.sleep(0.02)
        spans = (VersionSpan(len(self.prompts), len(tokens)),)
        return Rollout(tokens, np.full(len(tokens), -0.5, np.float32), spans, "stop", 0.01, end_ids=(END,))


def a_prompt(**answer: Any) -> Prompt:
    return Prompt("rl-1-0", "rl-1", 0, "t", ISSUED, answer, 7, 0, "rl", 300)


def run(
    body: Callable[[AgentPlayer, Saying], Awaitable[Any]], text: str = "yes", model: Any = CHAT, **task: Any
) -> Any:
    settings = {"name": f"{HERE}:Asking", "verifier_timeout_seconds": 1.0, "max_rollout_seconds": 20.0, **task}
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "task": settings})

    async def main() -> Any:
        pool: Any = make_judges(config.task)
        await pool.start()
        try:
            player: Any = make_player(config, pool, model)
            async with asyncio.timeout(60):
                return await body(player, Saying(text))
        finally:
            await pool.close()

    return asyncio.run(main())


def played(
    text: str = "yes", task: dict[str, Any] | None = None, model: Any = CHAT, **answer: Any
) -> tuple[Played, Saying]:
    async def body(player: AgentPlayer, engine: Saying) -> tuple[Played | None, Saying]:
        return await player.play(a_prompt(**answer), engine.generate), engine

    found: tuple[Played, Saying] = run(body, text, model, **task or {})
    return found


def text_of(made: Played) -> tuple[str, str]:
    assert made.prompt_token_ids is not None
    return decoded(CHAT, made.prompt_token_ids.tolist()), decoded(CHAT, made.transcript.token_ids.tolist())


def test_what_an_agent_asks_becomes_one_rollout() -> None:
    made, engine = played(then=[{"role": "user", "content": "two <|im_end|>"}])
    prompt, response = text_of(made)
    assert prompt == "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    behind = "\n<|im_start|>user\ntwo <|im_end|><|im_end|>\n<|im_start|>assistant\n"
    assert response == f"yes<|im_end|>{behind}yes<|im_end|>"
    assert list(made.transcript.token_ids).count(END) == 3  # the agent's words hold no token of control
    mask = made.transcript.action_mask
    assert decoded(CHAT, made.transcript.token_ids[mask].tolist()) == "yes<|im_end|>" * 2
    assert [span.version for span in made.transcript.version_spans] == [1, 2]
    assert (made.verdict, made.transcript.finish_reason) == (Verdict("correct", None, 0.5), "stop")
    first, second = engine.prompts
    assert first.seed == 7 != second.seed
    assert second.max_response_tokens == 300 - (len(mask) - 4)  # four are its own
    assert second.token_ids.tolist() == [*first.token_ids, *made.transcript.token_ids[:-4]]


def test_a_turn_that_is_streamed_is_recorded_as_any_other() -> None:
    """Piece by piece to the agent; the tokens are the same, and what the agent says next goes on from them."""
    then = [{"role": "user", "content": "two"}]
    plain, _ = played("yes, of course", then=then)
    made, engine = played("yes, of course", then=then, **{"with": {"stream": True}})
    assert engine.was_heard == [True, True] and made.segments == ()
    for name in ("token_ids", "action_mask", "log_probs"):
        assert np.array_equal(getattr(made.transcript, name), getattr(plain.transcript, name))
    assert made.transcript.version_spans == plain.transcript.version_spans and made.verdict == plain.verdict


def test_a_turn_whose_client_left_in_its_middle_is_not_trained() -> None:
    then = [{"role": "user", "content": "leave"}]
    made, engine = played("yes, of course", then=then, **{"with": {"stream": True}})
    assert len(engine.prompts) == 3 and made.segments == ()
    assert text_of(made)[1].count("yes, of course") == 2 and "leave" not in text_of(made)[1]
    assert "back" in text_of(made)[1] and [span.version for span in made.transcript.version_spans] == [1, 3]


def test_a_conversation_begun_anew_is_counted_and_goes_with_the_rollout() -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        made = await player.play(a_prompt(compacts=True, reward=-0.25), engine.generate)
        assert made is not None and "all so far" in text_of(made)[0]
        assert made.verdict == Verdict("wrong", None, -0.25)
        (first,) = made.segments
        assert made.num_actions == 2 * made.longest_response == 2 * len(first.response_token_ids)
        assert decoded(CHAT, first.prompt_token_ids.tolist()).count("one") == 1
        assert decoded(CHAT, first.response_token_ids.tolist()) == "yes<|im_end|>"
        assert (first.version_spans[0].version, first.finish_reason) == (1, "stop")
        counts = player.take_counts()
        assert (counts.calls, counts.requests, counts.segments) == (2, 2, 1)
        assert player.take_counts().requests == 0

    run(body)


def test_calls_of_tools_go_on_in_their_segment() -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    then = [{"role": "tool", "tool_call_id": "call_0_0", "content": "42"}]
    made, _ = played(call, model=TOOLED, then=then, **{"with": {"tools": TOOLS}})
    assert text_of(made)[1].count(call) == 2 and "<tool_response>\n42\n</tool_response>" in text_of(made)[1]


def loud(answer: Any, response: str, finish_reason: str, messages: list[Any]) -> float:
    """The policy's own calls, as it wrote them and as messages."""
    return response.count("<tool_call>") + 0.25 * sum("tool_calls" in each for each in messages) + len(messages) / 64


def test_functions_see_the_conversation_that_is_trained() -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    then = [{"role": "tool", "tool_call_id": "call_0_0", "content": f"42 {call}"}]
    task = {"rewards": [{"name": f"{HERE}:loud"}], "format_pattern": "42"}
    made, _ = played(call, task, model=TOOLED, then=then, **{"with": {"tools": TOOLS}})
    assert made.verdict == Verdict("correct", None, 0.5, {"loud": 2 + 0.25 * 2 + 4 / 64, "format": 0.0})
    anew, _ = played(task=task, compacts=True)
    assert anew.verdict.components["loud"] == 2 / 64
    assert anew.told is not None and anew.told.messages[0]["content"] == "all so far"


WHAT_IT_COMES_TO: list[tuple[dict[str, Any], Verdict]] = [
    ({"raises": True}, Verdict("crash", None)), ({"seconds": 600}, Verdict("timeout", None)),
    ({"reward": "much"}, Verdict("crash", None)), ({"reward": float("nan")}, Verdict("crash", None)),
    ({"outcome": "correct"}, Verdict("correct", None, 1.0)), ({"outcome": "wrong"}, Verdict("wrong", None, 0.0)),
    ({"outcome": "unparsable", "number": 0.5}, Verdict("unparsable", None, 0.5)), ({}, Verdict("correct", None, 0.5)),
]  # fmt: skip


def test_what_an_agent_comes_to() -> None:
    """One after the other in one child: an agent costs itself only."""

    async def body(player: AgentPlayer, engine: Saying) -> None:
        for answer, verdict in WHAT_IT_COMES_TO:
            made = await player.play(a_prompt(**answer), engine.generate)
            assert made is not None and made.verdict == verdict, answer
            assert text_of(made)[1] == "yes<|im_end|>"

    run(body, max_rollout_seconds=8.0)


def test_an_agent_that_asks_nothing_is_no_rollout() -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        with pytest.raises(NotBegun, match="the agent ended before it had asked the policy"):
            await player.play(a_prompt(asks=False), engine.generate)
        with pytest.raises(NotBegun, match="no such tool"):
            await player.play(a_prompt(asks=False, raises=True), engine.generate)

    run(body)


def test_an_agent_whose_child_is_killed_before_it_has_asked_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not for ever: it may be the agent that kills it."""
    monkeypatch.setattr("vcppo.generator.turns.play._MOST_DEATHS", 2)

    async def body(player: AgentPlayer, engine: Saying) -> None:
        async def killed() -> Any:
            playing = asyncio.ensure_future(player.play(a_prompt(asks=False, seconds=600), engine.generate))
            while not (child := next(iter(player._pool._children), None)) or not child._waiting:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.5)  # it is in `run`
            child._died("killed by the test")
            return (await asyncio.gather(playing, return_exceptions=True))[0]

        assert [type(await killed()) for _ in range(3)] == [RolloutLost, RolloutLost, NotBegun]
        assert player._deaths == {}

    run(body, max_rollout_seconds=100.0)


def test_a_request_beyond_the_limits_is_told_to_the_agent() -> None:
    made, _ = played(task={"max_turns": 1}, then=[{"role": "user", "content": "two"}])
    assert made.verdict == Verdict("crash", None) and made.transcript.finish_reason == "length"


def test_a_rollout_that_is_dropped_ends_its_agent() -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        dropped = asyncio.ensure_future(player.play(a_prompt(seconds=600), engine.generate))
        await engine.sampled.wait()
        await asyncio.sleep(0)
        dropped.cancel()
        await asyncio.gather(dropped, return_exceptions=True)
        assert dropped.cancelled()
        # There is one place for agents: it is free again long before that one would have ended.
        made = await player.play(a_prompt(), engine.generate)
        assert made is not None and made.verdict.outcome == "correct"
        assert player.take_counts().errors == 0

    run(body, environment_calls=1, max_rollout_seconds=500.0)


def test_settings_of_sampling_are_the_runs() -> None:
    made, engine = played(**{"with": {"temperature": 0.0, "max_tokens": 5}})
    assert engine.prompts[0].max_response_tokens == 5 and made.verdict.outcome == "correct"


def test_a_proxy_does_not_stand_before_the_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "example.org")
    assert played()[0].verdict.outcome == "correct"


def test_an_evaluation_asks_agents_too() -> None:
    async def body(player: AgentPlayer, engine: Any) -> None:
        config = player._config
        respondent = Respondent(config, engine, player._pool, CHAT)
        made = await respondent.respond(replace(a_prompt(), id="eval-1-0"))
        assert (made.text, made.verdict.outcome, made.num_tokens) == ("yes", "correct", 4)

    run(body)


def test_a_run_that_is_not_async_is_refused() -> None:
    with pytest.raises(TaskError, match="is no coroutine function: write `async def run`"):

        class Blocking(Asking):
            def run(self, answer: Any, endpoint: Any) -> float:  # type: ignore[override]
                return 0.0


PROGRAM = """
import json
import os

import openai
problem = json.loads(input())
client = openai.OpenAI(timeout=20)
made = client.chat.completions.create(model=os.environ["OPENAI_MODEL"], messages=problem["prompt"])
print("it says", made.choices[0].message.content)
print(problem["answer"]["prints"])
"""


class Given(Asking):
    """Problems for a program."""

    is_agent = False


@pytest.mark.parametrize(
    ("prints", "verdict"),
    [("0.25", Verdict("correct", None, 0.25)), ("nothing", Verdict("crash", None))],
)  # fmt: skip
def test_an_agent_may_be_a_program(tmp_path: Path, prints: str, verdict: Verdict) -> None:
    (tmp_path / "agent.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "agent.py")]
    options = {"command": command, "problems": f"{HERE}:Given"}
    task = load_task(TaskConfig(name="command_agent", options=options))
    assert task.judged_by == [f"{HERE}:Given"]  # a recording is known by its source
    (problem,) = task.problems("train", 0, 0, 1)
    assert problem.answer == {"prompt": [{"role": "user", "content": "issued"}], "answer": {}}

    async def body(player: AgentPlayer, engine: Saying) -> None:
        prompt = a_prompt(**{**problem.answer, "answer": {"prints": prints}})
        made = await player.play(prompt, engine.generate)
        assert made is not None and made.verdict == verdict
        assert text_of(made) == (decoded(CHAT, ISSUED.tolist()), "yes<|im_end|>")

    run(body, name="command_agent", options=options)


@pytest.mark.parametrize(
    ("line", "reward"),
    [(b"1\n", 1), (b'{"reward": 0.5}', 0.5), (b'{"reward": -1, "outcome": "wrong"}', Verdict("wrong", None, -1))],
)  # fmt: skip
def test_a_programs_last_line_is_its_reward(line: bytes, reward: object) -> None:
    assert read_reward(line) == reward


@pytest.mark.parametrize("line", [b"", b"done", b'{"outcome": "wrong"}', b'{"reward": 1, "more": 1}', b'"1"', b"[1]"])
def test_another_last_line_is_none(line: bytes) -> None:
    with pytest.raises(ValueError, match="the program's last line is no reward"):
        read_reward(line)


def test_an_agent_of_agents_is_refused() -> None:
    with pytest.raises(TaskError, match="an agent itself"):
        load_task(TaskConfig(name="command_agent", options={"command": ["true"], "problems": f"{HERE}:Asking"}))


FOREVER = """
import os
import subprocess
import sys
import time

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open("pids", "w").write(f"{os.getpid()} {child.pid}")
time.sleep(600)
"""


def test_a_program_is_ended_with_all_that_it_has_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = {"command": [sys.executable, "-c", FOREVER], "problems": f"{HERE}:Given"}

    async def body(player: AgentPlayer, engine: Saying) -> None:
        with pytest.raises(NotBegun, match="took more than 3 s"):
            await player.play(a_prompt(prompt="x", answer={}), engine.generate)
        pids = (tmp_path / "pids").read_text().split()
        async with asyncio.timeout(20):
            while any(Path(f"/proc/{pid}").exists() for pid in pids):
                await asyncio.sleep(0.05)

    run(body, name="command_agent", options=options, max_rollout_seconds=3.0)

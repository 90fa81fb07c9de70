"""Agents in a real child, asking over HTTP; the engine is scripted."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import openai
import pytest

from tests.unit.common.environments.test_turn_text import CHAT, END, decoded
from vcppo.common.config import VcppoConfig
from vcppo.common.environments.agent import Agent, Endpoint
from vcppo.common.records.trajectory import Prompt, VersionSpan
from vcppo.common.tasks import Problem, TaskError, Verdict, encode_prompt
from vcppo.generator.turns.agent_play import AgentPlayer, make_player
from vcppo.generator.turns.judges import Respondent, make_judges
from vcppo.generator.turns.play import NotBegun, Played
from vcppo.generator.vllm_engine.engine import Rollout

HERE = "tests.unit.generator.turns.test_agents"
ISSUED = encode_prompt(CHAT, [{"role": "user", "content": "issued"}])
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
        return (await client.chat.completions.create(model="policy", messages=chat, **given)).choices[0].message


class Saying:
    """An engine that says `text` in each turn."""

    def __init__(self, text: str = "yes") -> None:
        self.text, self.prompts = text, list[Prompt]()
        self.sampled = asyncio.Event()

    async def generate(self, prompt: Prompt) -> Rollout:
        self.prompts.append(prompt)
        self.sampled.set()
        tokens = np.asarray([*CHAT(self.text)["input_ids"], END], np.int32)
        spans = (VersionSpan(len(self.prompts), len(tokens)),)
        return Rollout(tokens, np.full(len(tokens), -0.5, np.float32), spans, "stop", 0.01, end_ids=(END,))


def a_prompt(**answer: Any) -> Prompt:
    return Prompt("rl-1-0", "rl-1", 0, "t", ISSUED, answer, 7, 0, "rl", 300)


def run(body: Callable[[AgentPlayer, Saying], Awaitable[Any]], text: str = "yes", **task: Any) -> Any:
    settings = {"name": f"{HERE}:Asking", "verifier_timeout_seconds": 1.0, "max_rollout_seconds": 20.0, **task}
    config = VcppoConfig.model_validate({"model": {"path": "m"}, "task": settings})

    async def main() -> Any:
        pool: Any = make_judges(config.task)
        await pool.start()
        try:
            player: Any = make_player(config, pool, CHAT)
            async with asyncio.timeout(60):
                return await body(player, Saying(text))
        finally:
            await pool.close()

    return asyncio.run(main())


def played(text: str = "yes", task: dict[str, Any] | None = None, **answer: Any) -> tuple[Played, Saying]:
    async def body(player: AgentPlayer, engine: Saying) -> tuple[Played | None, Saying]:
        return await player.play(a_prompt(**answer), engine.generate), engine

    found: tuple[Played, Saying] = run(body, text, **task or {})
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


def test_a_conversation_begun_anew_is_counted_and_the_last_is_the_rollout() -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        made = await player.play(a_prompt(compacts=True, reward=-0.25), engine.generate)
        assert made is not None and "all so far" in text_of(made)[0]
        assert made.verdict == Verdict("wrong", None, -0.25)
        counts = player.take_counts()
        assert (counts.calls, counts.requests, counts.not_trained) == (2, 2, 1)
        assert player.take_counts().requests == 0

    run(body)


def test_calls_of_tools_go_on_in_their_segment() -> None:
    call = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
    then = [{"role": "tool", "tool_call_id": "call_0_0", "content": "42"}]
    made, _ = played(call, then=then, **{"with": {"tools": TOOLS}})
    assert text_of(made)[1].count(call) == 2 and "<tool_response>\n42\n</tool_response>" in text_of(made)[1]


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ({"raises": True}, Verdict("crash", None)), ({"seconds": 600}, Verdict("timeout", None)),
        ({"reward": "much"}, Verdict("crash", None)), ({"reward": float("nan")}, Verdict("crash", None)),
        ({"outcome": "correct"}, Verdict("correct", None, 1.0)), ({"outcome": "wrong"}, Verdict("wrong", None, 0.0)),
        ({"outcome": "unparsable", "number": 0.5}, Verdict("unparsable", None, 0.5)),
    ],
)  # fmt: skip
def test_what_an_agent_comes_to(answer: dict[str, Any], verdict: Verdict) -> None:
    async def body(player: AgentPlayer, engine: Saying) -> None:
        made = await player.play(a_prompt(**answer), engine.generate)
        assert made is not None and made.verdict == verdict
        assert text_of(made)[1] == "yes<|im_end|>"
        again = await player.play(a_prompt(), engine.generate)  # in the same child: an agent costs itself only
        assert again is not None and again.verdict == Verdict("correct", None, 0.5)

    run(body, max_rollout_seconds=2.0)


def test_an_agent_that_asks_nothing_is_no_rollout() -> None:
    with pytest.raises(NotBegun, match="the agent ended before it had asked the policy"):
        played(asks=False)
    with pytest.raises(NotBegun, match="no such tool"):
        played(asks=False, raises=True)


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

"""The rollout of an agent: it works in its child and asks, the policy answers, until it returns.

session opens ─▶ run ─┬▶ [ request ─▶ plan ─▶ sample ─▶ take ─▶ reply ] …
                      ╰▶ its reward, which all its segments share
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from dataclasses import replace
from typing import Any

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.environments.environment import Observation, outcome_of
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Prompt
from vcppo.common.tasks import Verdict
from vcppo.generator.endpoint.chat_encoder import ChatEncoder
from vcppo.generator.endpoint.chat_form import FinishedBy, Reply
from vcppo.generator.endpoint.chat_messages import assistant_message
from vcppo.generator.endpoint.conversation import Conversation, Limits, Plan
from vcppo.generator.endpoint.refusal import Refusal
from vcppo.generator.endpoint.server import Call, EndpointServer
from vcppo.generator.endpoint.server import Session as EndpointSession
from vcppo.generator.endpoint.tool_calls import read_tool_calls
from vcppo.generator.turns.agent_pool import AgentPool
from vcppo.generator.turns.environment_lines import Answer
from vcppo.generator.turns.environment_pool import EnvironmentPool, RolloutLost, Session
from vcppo.generator.turns.play import Played, Player, Sample
from vcppo.generator.vllm_engine.engine import Rollout
from vcppo.generator.vllm_engine.stepper import Hear

log = structlog.get_logger(__name__)


def make_player(config: VcppoConfig, pool: EnvironmentPool, tokenizer: Any) -> Player:
    """Of the kind of task that the pool has; see `Player`. Raises TaskError."""
    return (AgentPlayer if isinstance(pool, AgentPool) else Player)(config, pool, tokenizer)


class AgentPlayer(Player):
    """See `Player`: it plays rollouts of agents."""

    def __init__(self, config: VcppoConfig, pool: EnvironmentPool, tokenizer: Any) -> None:
        super().__init__(config, pool, tokenizer)
        self._encoder = ChatEncoder(tokenizer)
        self._config = config
        self._told: set[str] = set()  # settings of requests that do not count, once each

    async def _played(self, prompt: Prompt, session: Session, sample: Sample) -> Played | None:
        """NotBegun too when the agent ends without having asked the policy."""
        return await _AgentRollout(self, prompt, session).play(sample)

    @property
    def server(self) -> EndpointServer:
        """The endpoint."""
        assert isinstance(self._pool, AgentPool)
        return self._pool.server

    def new_conversation(self, prompt: Prompt) -> Conversation:
        """Within the limits of the prompt, the model and the task."""
        sequence, task = self._config.generator.max_model_len, self._config.task
        most = int(self._config.transport.max_message_mib * 2**20)
        limits = Limits(prompt.max_response_tokens, sequence, task.max_turns, task.max_segments, most)
        return Conversation(self._encoder, limits)

    def count(self, *, requests: int = 0, segments: int = 0) -> None:
        """What is drawn."""
        self._pool.counts.requests += requests
        self._pool.counts.segments += segments

    def tell_ignored(self, names: frozenset[str]) -> None:
        """Once for each setting: an agent must not believe that it samples as it likes."""
        if new := names - self._told:
            self._told |= new
            log.warning(
                "request_settings_ignored", settings=sorted(new), used="sampling",
                why="what is trained must be sampled as the run's settings say",
            )  # fmt: skip


class _AgentRollout:
    """One of them."""

    def __init__(self, player: AgentPlayer, prompt: Prompt, session: Session) -> None:
        self._player, self._prompt, self._session = player, prompt, session
        self._conversation = player.new_conversation(prompt)
        self._num_sampled = 0
        self._generate_seconds = 0.0
        self._end_ids: tuple[int, ...] = ()

    async def play(self, sample: Sample) -> Played | None:
        began = time.monotonic()
        begun = await self._session.reset(dict(self._prompt.answer))
        if begun.fault is not None:
            text = f"the agent could not begin ({begun.fault}): {begun.detail}"
            raise self._player.not_begun(self._prompt, begun, text)
        with self._player.server.open() as opened:
            working = asyncio.ensure_future(self._session.step(json.dumps(opened.endpoint._asdict())))
            try:
                while (call := await _next(opened, working)) is not None:
                    if not await self._answer(call, sample):
                        return None
                answer = await working
            finally:
                working.cancel()
        return self._played(answer, time.monotonic() - began)

    async def _answer(self, call: Call, sample: Sample) -> bool:
        """One call; False: vLLM refuses the turn, so that the prompt is given up. Raises RolloutLost."""
        asked = call.request
        self._player.tell_ignored(asked.ignored)
        try:
            plan = self._conversation.plan(asked.messages, asked.tools)
        except Refusal as refusal:
            call.refuse(refusal)
            return True
        room = plan.room if asked.max_tokens is None else min(plan.room, asked.max_tokens)
        prompt, hear = self._prompt_of(plan, room), self._hear(call)
        turn = await (sample(prompt) if hear is None else sample(prompt, hear))
        self._num_sampled += 1
        if turn is None:
            return False
        if turn.finish_reason == "abort" or not len(turn.token_ids):
            raise RolloutLost
        self._generate_seconds += turn.seconds
        if call.is_wanted:  # whoever asks the same once more gets another turn, as if this one had not been
            text = self._player.action_of(turn)
            reply = self._reply(plan, turn, text)
            self._conversation.take(plan, turn, text, reply.message)
            self._end_ids = turn.end_ids
            self._player.count(requests=1)
            call.answer(reply)
        return True

    def _hear(self, call: Call) -> Hear | None:
        """Where the agent wants its turn streamed. With tools it gets all in one piece: what is a call shows at its
        end."""
        if not call.request.stream or call.request.tools is not None:
            return None
        text = self._player.streamed()
        return lambda tokens: call.say(text.more(tokens))

    def _prompt_of(self, plan: Plan, room: int) -> Prompt:
        """The first turn's seed is the prompt's, each later one's its own."""
        number, seed = self._num_sampled, self._prompt.seed
        seed = derive_seed(seed, "turn", number) if number else seed
        return replace(self._prompt, token_ids=plan.token_ids, seed=seed, max_response_tokens=room)

    def _reply(self, plan: Plan, turn: Rollout, text: str) -> Reply:
        calls = list[dict[str, Any]]()
        if plan.segment.tools is not None:
            text, calls = read_tool_calls(text, self._conversation.num_turns)
        ended: FinishedBy = "length" if turn.finish_reason == "length" else "tool_calls" if calls else "stop"
        return Reply(assistant_message(text, calls), ended, len(plan.token_ids), len(turn.token_ids))

    def _played(self, answer: Answer, seconds: float) -> Played:
        if not self._conversation.num_segments:
            what = "ended" if answer.fault is None else f"failed ({answer.detail})"
            text = f"the agent {what} before it had asked the policy: there is nothing to train"
            raise self._player.not_begun(self._prompt, answer, text)
        self._player.count(segments=self._conversation.num_segments - 1)
        seen: Observation = answer.observation
        last = self._conversation.last
        made = self._conversation.finish(seen.reward)
        if answer.fault is not None:
            verdict = Verdict(answer.fault, None)
        else:
            rewards = [seen.reward]
            verdict = Verdict(outcome_of(rewards, seen), None, math.fsum(rewards))
        return Played(
            transcript=made.transcript,
            verdict=verdict,
            end_ids=self._end_ids,
            tools=seen.tools,
            generate_seconds=self._generate_seconds,
            environment_seconds=seconds - self._generate_seconds,
            prompt_token_ids=made.prompt,
            segments=made.others,
            told=self._player.told(made.prompt, last.turns, last.said),
        )


async def _next(opened: EndpointSession, working: asyncio.Future[Answer]) -> Call | None:
    """What the agent asks next; None: it is done."""
    while True:
        asking = asyncio.ensure_future(opened.calls.get())
        try:
            await asyncio.wait((asking, working), return_when=asyncio.FIRST_COMPLETED)
        finally:
            asking.cancel()
        if working.done() or not asking.done():
            return None
        call = asking.result()
        if call.is_wanted:
            return call

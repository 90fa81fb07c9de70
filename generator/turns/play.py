"""The loop of a rollout of several turns: the policy acts, the environment answers, until one of them ends it.

reset ─▶ [ sample a turn ─▶ step ─▶ its text as tokens ] … ─▶ `Played`
           ╰ has a place in vLLM    ╰ has none: the place is another sequence's
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.environments.environment import Observation, ToolUse, outcome_of
from vcppo.common.environments.episode import Episode, Transcript
from vcppo.common.environments.told import Told, acted, answered, opening
from vcppo.common.environments.turn_text import TurnText
from vcppo.common.errors import VcppoError
from vcppo.common.records.seeds import derive_seed
from vcppo.common.records.trajectory import Int32Array, Prompt, Segment
from vcppo.common.tasks import ChatMessages, TaskError, Verdict, decode_response
from vcppo.generator.endpoint.streamed_text import StreamedText
from vcppo.generator.turns.environment_lines import Answer
from vcppo.generator.turns.environment_pool import CallCounts, EnvironmentPool, RolloutLost, Session
from vcppo.generator.vllm_engine.engine import Rollout
from vcppo.generator.vllm_engine.stepper import Hear
from vcppo.generator.vllm_engine.stop_strings import judged_text

log = structlog.get_logger(__name__)

_MOST_DEATHS = 3  # of children, until a prompt whose rollout had not begun in any of them is given up


class Sample(Protocol):
    """Makes one turn."""

    async def __call__(self, prompt: Prompt, /, hear: Hear | None = None) -> Rollout | None:
        """None: it is refused.

        Args:
            prompt: all tokens so far, the turn's own seed, and what room is left.
            hear: is called with the turn's tokens so far, now and then.
        """


class NotBegun(VcppoError):
    """The environment could not make the state of this problem; the text says why."""


class Played(NamedTuple):
    """A finished rollout.

    Attributes:
        verdict: its outcome, and as its number the sum of the turns' rewards; no number after a fault. With the
            components of reward functions.
        end_ids: the end token of the last turn, if it has one.
        generate_seconds, environment_seconds: spent in vLLM, and in the environment, waiting for a turn there included.
        tools: that were called.
        prompt_token_ids: ``[P]`` that the response stands behind; None: the prompt's own.
        segments: the rollout's other conversations.
        told: what reward functions and sources are told of it; None where there are none.
        grade_seconds: that reward functions took.
    """

    transcript: Transcript
    verdict: Verdict
    end_ids: tuple[int, ...]
    generate_seconds: float
    environment_seconds: float
    tools: ToolUse = ToolUse()
    prompt_token_ids: Int32Array | None = None
    segments: tuple[Segment, ...] = ()
    told: Told | None = None
    grade_seconds: float = 0.0

    @property
    def num_actions(self) -> int:
        """Tokens that the policy chose, in all conversations."""
        others = sum(int(each.action_mask.sum()) for each in self.segments)
        return int(self.transcript.action_mask.sum()) + others

    @property
    def longest_response(self) -> int:
        """Tokens of the response of the conversation with the longest one."""
        lengths = (len(each.response_token_ids) for each in self.segments)
        return max((len(self.transcript.token_ids), *lengths))


class Player:
    """Plays rollouts, any number at a time. Make it when the pool has started.

    Raises:
        TaskError: the model's chat template can't be used turn by turn.
    """

    def __init__(self, config: VcppoConfig, pool: EnvironmentPool, tokenizer: Any) -> None:
        self._task, self._stop_in_text = config.task, config.sampling.stop_in_text
        self._stops = tuple(config.sampling.stop)
        self._deaths = Counter[str]()  # of children in which a prompt's rollout had not begun
        self._pool, self._tokenizer = pool, tokenizer
        self._turn_text = TurnText(tokenizer, is_chat=pool.is_chat, template=pool.template)

    async def play(self, prompt: Prompt, sample: Sample) -> Played | None:
        """One rollout; None when `sample` refused a turn.

        Raises:
            RolloutLost: it can't go on, and not by its own fault: the prompt is to be handed back.
            NotBegun: the environment's `reset` failed.
            EnvironmentNotStarted: there is no environment any more.
            VerifierError: there is no child for reward functions any more.
        """
        async with self._pool.open() as session:
            played = await self._played(prompt, session, sample)
        if played is None or played.told is None:
            return played
        made, told, began = played.transcript, played.told, time.monotonic()
        verdict = await self._pool.graded(played.verdict, prompt.answer, made.finish_reason, told)
        return played._replace(verdict=verdict, grade_seconds=time.monotonic() - began)

    async def _played(self, prompt: Prompt, session: Session, sample: Sample) -> Played | None:
        return await _Game(self, prompt, session).play(sample)

    def told(self, prompt_token_ids: Int32Array, turns: Sequence[str], messages: ChatMessages) -> Told | None:
        """What others are told of a rollout; None: nobody asks."""
        if not self._pool.tells:
            return None
        return Told.of(str(self._tokenizer.decode(prompt_token_ids.tolist())), turns, messages)

    def not_begun(self, prompt: Prompt, answer: Answer, text: str) -> VcppoError | RolloutLost:
        """What ends a rollout of which there is nothing to train.

        Where its child has died it begins anew: somebody may have killed that. Not for ever: it may be the rollout.
        """
        if answer.has_died and self._deaths[prompt.id] < _MOST_DEATHS:
            self._deaths[prompt.id] += 1
            return RolloutLost()
        self._deaths.pop(prompt.id, None)
        return NotBegun(text)

    def take_counts(self) -> CallCounts:
        """Of the environments' calls since this was asked last."""
        taken, self._pool.counts = self._pool.counts, CallCounts()
        return taken

    def action_of(self, turn: Rollout) -> str:
        """What the environment sees of a turn."""
        text = decode_response(self._tokenizer, turn.token_ids, turn.end_ids)
        return judged_text(text, turn.stop_string, self._stop_in_text)

    def streamed(self) -> StreamedText:
        """The text of a turn while it is sampled, as `action_of` will say it."""
        tokenizer = self._tokenizer

        def decode(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

        stops = () if self._stop_in_text else self._stops
        return StreamedText(decode, lambda token: not decode_response(tokenizer, [token]), stops)

    def new_episode(self, prompt: Prompt) -> Episode:
        """Within the limits of the prompt and the task."""
        return Episode(prompt.max_response_tokens, self._task.max_turns)

    @property
    def max_seconds(self) -> float:
        """Of a rollout."""
        return self._task.max_rollout_seconds

    def encode(self, seen: Observation, last_token: int) -> list[int]:
        """The observation's tokens. Raises TaskError when the chat template can't render it."""
        return self._turn_text.encode(seen.content, last_token)


class _Game:
    """One rollout."""

    def __init__(self, player: Player, prompt: Prompt, session: Session) -> None:
        self._player, self._prompt, self._session = player, prompt, session
        self._episode = player.new_episode(prompt)
        self._began = time.monotonic()
        self._generate_seconds = self._environment_seconds = 0.0
        self._tools = ToolUse()
        self._turns: list[str] = []
        self._messages: ChatMessages = []

    async def play(self, sample: Sample) -> Played | None:
        begun = await self._ask(self._session.reset(dict(self._prompt.answer)))
        if begun.fault is not None:
            text = f"the environment could not begin ({begun.fault}): {begun.detail}"
            raise self._player.not_begun(self._prompt, begun, text)
        while True:
            turn = await sample(self._next_prompt())
            if turn is None:
                return None
            if turn.finish_reason == "abort" or not len(turn.token_ids):
                raise RolloutLost
            self._generate_seconds += turn.seconds
            self._episode.act(turn)
            action, answer = self._player.action_of(turn), None
            self._turns.append(action)
            self._messages.append(acted(action))
            if self._episode.finish_reason is None:
                answer = self._take(await self._ask(self._session.step(action)), turn)
            if self._episode.finish_reason is not None:
                return self._played(turn, answer)

    async def _ask(self, asking: Awaitable[Answer]) -> Answer:
        began = time.monotonic()
        try:
            return await asking
        finally:
            self._environment_seconds += time.monotonic() - began

    def _take(self, answer: Answer, turn: Rollout) -> Answer:
        """The answer to a turn into the episode; as a fault when what it says can't be encoded."""
        seen, said = answer.observation, list[int]()
        self._tools = self._tools.and_(seen.tools)
        if answer.fault is None and not seen.done:
            try:
                said = self._player.encode(seen, int(turn.token_ids[-1]))
            except TaskError as error:
                log.warning("environment_fault", outcome="crash", detail=str(error), prompt_id=self._prompt.id)
                answer = Answer(Observation(), "crash", str(error))
        ends = seen.done or answer.fault is not None
        is_late = time.monotonic() - self._began > self._player.max_seconds
        self._episode.observe(said, seen.reward, done=ends, is_late=is_late)
        if self._episode.finish_reason is None:
            self._messages += answered(seen)
        return answer

    def _played(self, turn: Rollout, answer: Answer | None) -> Played:
        rewards = self._episode.turn_rewards
        if answer is not None and answer.fault is not None:
            verdict = Verdict(answer.fault, None)
        else:
            last = answer.observation if answer is not None and answer.observation.done else None
            verdict = Verdict(outcome_of(rewards, last), None, math.fsum(rewards))
        return Played(
            self._episode.transcript(), verdict, turn.end_ids, self._generate_seconds,
            self._environment_seconds, tools=self._tools, told=self._told(),
        )  # fmt: skip

    def _told(self) -> Told | None:
        told = self._player.told(self._prompt.token_ids, self._turns, self._messages)
        return None if told is None else told._replace(messages=[opening(told.prompt), *told.messages])

    def _next_prompt(self) -> Prompt:
        """All tokens so far; the first turn's seed is the prompt's, each later one's its own."""
        number = self._episode.num_turns
        if not number:
            return self._prompt
        return replace(
            self._prompt,
            token_ids=np.concatenate([self._prompt.token_ids, self._episode.token_ids]),
            seed=derive_seed(self._prompt.seed, "turn", number),
            max_response_tokens=self._episode.room,
        )

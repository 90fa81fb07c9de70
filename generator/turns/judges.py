"""Who judges a task's responses: verifiers, or the environment itself."""

from __future__ import annotations

from typing import Any, NamedTuple

from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.environments.told import one_turn
from vcppo.common.errors import VcppoError
from vcppo.common.records.trajectory import FinishReason, Prompt
from vcppo.common.tasks import Verdict, decode_response, task_class
from vcppo.generator.reward_sources.items import Asked
from vcppo.generator.reward_sources.source import RewardSource
from vcppo.generator.turns.agent_play import make_player
from vcppo.generator.turns.agent_pool import AgentPool
from vcppo.generator.turns.environment_pool import EnvironmentPool, RolloutLost
from vcppo.generator.turns.play import Player
from vcppo.generator.verifying.scorer import asked_of
from vcppo.generator.verifying.verifier_pool import VerifierPool
from vcppo.generator.vllm_engine.engine import Engine, Rollout
from vcppo.generator.vllm_engine.stepper import Hear
from vcppo.generator.vllm_engine.stop_strings import judged_text

Judges = VerifierPool | EnvironmentPool
"""Both have ``start()`` and ``close()``."""
_MOST_TRIES = 4


class Judged(NamedTuple):
    """A response of one turn or several, outside of a run's accounts: of an evaluation or a check.

    Attributes:
        text: all of it, what the environment said included; of an agent's conversations the one that ended last.
        num_tokens: that the policy wrote, in all conversations.
        length: tokens of all of it; of an agent's conversations the longest.
        seconds: in vLLM.
        turn_rewards: of an environment's turns.
    """

    text: str
    verdict: Verdict
    finish_reason: FinishReason
    num_tokens: int
    length: int
    seconds: float
    turn_rewards: tuple[float, ...] = ()


def make_judges(config: TaskConfig) -> Judges:
    """Not started yet. Raises TaskError when there is no such task, or settings that its kind can't have."""
    kind = task_class(config.name)
    if kind.is_agent:
        return AgentPool(config)
    return EnvironmentPool(config) if kind.is_environment else VerifierPool(config)


class Respondent:
    """Makes responses and has them judged. Make it when engine and judges have started.

    Args:
        rewards: asked only when it may replace outcomes: what is counted is then what training counts.
    """

    def __init__(
        self, config: VcppoConfig, engine: Engine, judges: Judges, tokenizer: Any, rewards: RewardSource | None = None
    ) -> None:
        self._config, self._engine, self._judges, self._tokenizer = config, engine, judges, tokenizer
        self._rewards = rewards
        self._player = make_player(config, judges, tokenizer) if isinstance(judges, EnvironmentPool) else None

    async def respond(self, prompt: Prompt) -> Judged:
        """One response. Raises VcppoError when vLLM refuses it, or judges or source of rewards fail for good."""
        if self._player is not None:
            return await self._turns(prompt, self._player)
        assert not isinstance(self._judges, EnvironmentPool)
        rollout = await self._engine.generate(prompt)
        text = decode_response(self._tokenizer, rollout.token_ids, rollout.end_ids)
        judged = judged_text(text, rollout.stop_string, self._config.sampling.stop_in_text)
        shown = str(self._tokenizer.decode(prompt.token_ids.tolist()))
        messages = one_turn(shown, judged) if self._config.task.rewards else ()
        verdict = await self._judges.verify(prompt.answer, judged, rollout.finish_reason, messages)
        count = len(rollout.token_ids)
        if self._rewards is not None and self._rewards.gives_outcomes:
            asked = Asked(prompt.id, shown, prompt.answer, judged, rollout.finish_reason, count, verdict)
            verdict = verdict._replace(outcome=(await self._rewards.score(asked)).outcome)
        return Judged(text, verdict, rollout.finish_reason, count, count, rollout.seconds)

    async def _turns(self, prompt: Prompt, player: Player) -> Judged:
        async def sample(turn: Prompt, /, hear: Hear | None = None) -> Rollout:
            return await self._engine.generate(turn, hear, turns=turns)

        for _ in range(_MOST_TRIES):  # another rollout may end the child that holds this one
            try:
                with self._engine.turns() as turns:
                    played = await player.play(prompt, sample)
            except RolloutLost:
                continue
            assert played is not None  # `sample` refuses nothing
            made, verdict = played.transcript, played.verdict
            if self._rewards is not None and self._rewards.gives_outcomes:
                assert played.told is not None  # there is a source
                asked = asked_of(prompt.id, prompt.answer, verdict, made, played.longest_response, played.told)
                verdict = verdict._replace(outcome=(await self._rewards.score(asked)).outcome)
            text = decode_response(self._tokenizer, made.token_ids, played.end_ids)
            count = played.num_actions
            length, seconds = played.longest_response, played.generate_seconds
            return Judged(text, verdict, made.finish_reason, count, length, seconds, made.turn_rewards)
        raise VcppoError(f"{prompt.id}: its environment's child was lost {_MOST_TRIES} times: see the lines above")

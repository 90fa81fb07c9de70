"""From a response to what is trained of it: the verdict of a verifier's child, then the rule of the run's rewards.

    response ─▶ VerifierPool.verify ─▶ Verdict (outcome, number, components) ─▶ RewardRule.score ─▶ Score

A number from elsewhere (`vcppo.generator.reward_sources`) comes between the two: it is the verdict's reward, and the
rule, the wire, the buffer's check and the metrics treat it as any other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import structlog

from vcppo.common.config import VcppoConfig
from vcppo.common.environments.episode import Transcript
from vcppo.common.environments.told import Told, one_turn
from vcppo.common.records.trajectory import FinishReason
from vcppo.common.rewards.reward_rule import Score
from vcppo.common.tasks import Verdict
from vcppo.generator.reward_sources.items import Asked
from vcppo.generator.reward_sources.source import RewardSource
from vcppo.generator.verifying.verifier_pool import VerifierPool

log = structlog.get_logger(__name__)


class Scorer:
    """Judges responses of one turn, and scores those of any number.

    Args:
        verifiers: None: an environment judges, and its verdicts come by `score_rollout`.
        source: of the rewards; None: the verdicts give them.
    """

    def __init__(self, config: VcppoConfig, verifiers: VerifierPool | None, source: RewardSource | None = None) -> None:
        self._rule, self._verifiers, self._task = config.reward_rule, verifiers, config.task.name
        self._source, self._wants_messages = source, bool(config.task.rewards)
        self._takes_outcome_alone = False

    @classmethod
    def of_benchmark(cls, config: VcppoConfig, name: str, verifiers: VerifierPool) -> Scorer:
        """Of a benchmark that is evaluated during training: its verdict's outcome is all that counts."""
        made = cls(config, verifiers)
        made._rule, made._task, made._wants_messages = config.reward_rule.by_outcome_alone(), name, False
        made._takes_outcome_alone = True
        return made

    async def score(
        self,
        answer: Mapping[str, object],
        response: str,
        finish_reason: FinishReason,
        num_tokens: int,
        prompt: Callable[[], tuple[str, str]] = lambda: ("", ""),
    ) -> Score:
        """Judge one response of `num_tokens` tokens.

        Args:
            prompt: (id, text) of its prompt, which a source of rewards is told.

        Raises:
            VerifierError: see `VerifierPool.verify`.
            SourceAway, NoReward: see `RewardSource.score`.
        """
        assert self._verifiers is not None  # an environment's verdicts come by `score_rollout`
        messages = one_turn(prompt()[1], response) if self._wants_messages else ()
        verdict = await self._verifiers.verify(answer, response, finish_reason, messages)
        if self._source is not None:
            return await self._source.score(Asked(*prompt(), answer, response, finish_reason, num_tokens, verdict))
        return self.score_verdict(verdict, num_tokens)

    async def score_rollout(
        self,
        prompt_id: str,
        answer: Mapping[str, object],
        verdict: Verdict,
        made: Transcript,
        num_tokens: int,
        told: Told | None,
    ) -> Score:
        """What a rollout of several turns is worth, judged already.

        Args:
            num_tokens: of its longest response.
            told: what a source of rewards is told; needed where there is one.

        Raises:
            SourceAway, NoReward: see `RewardSource.score`.
        """
        if self._source is None:
            return self.score_verdict(verdict, num_tokens, made.turn_rewards)
        assert told is not None
        return await self._source.score(asked_of(prompt_id, answer, verdict, made, num_tokens, told))

    def score_verdict(self, verdict: Verdict, num_tokens: int, turn_rewards: Sequence[float] = ()) -> Score:
        """What a verdict on a response of `num_tokens` tokens is worth. A number out of range is logged."""
        if self._takes_outcome_alone:
            verdict = Verdict(verdict.outcome, verdict.extracted)
        score = self._rule.score(verdict.outcome, verdict.reward, verdict.components, num_tokens, turn_rewards)
        if score.fault is not None:
            log.warning(
                "reward_out_of_range", task=self._task, detail=score.fault, outcome=verdict.outcome,
                base=verdict.reward, components=dict(verdict.components),
                effect="outcome crash, the number is not trained",
                remedy="mend the rewards; a wider task.reward_range is for a new run",
            )  # fmt: skip
        return score

    async def until_reachable(self) -> None:
        """Wait while the source of rewards is away: what is leased then could not be scored."""
        if self._source is not None:
            await self._source.until_reachable()


def asked_of(
    prompt_id: str, answer: Mapping[str, object], verdict: Verdict, made: Transcript, num_tokens: int, told: Told
) -> Asked:
    """A rollout of several turns as a source of rewards is asked about it; `num_tokens` of its longest response."""
    return Asked(
        prompt_id, told.prompt, answer, told.response, made.finish_reason, num_tokens, verdict,
        made.turn_rewards, told.messages,
    )  # fmt: skip

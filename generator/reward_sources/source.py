"""The source of a run's rewards, where it is not the task's own code.

    Asked ─▶ Exchange ─▶ ServiceAsker or JudgeAsker ─▶ Said ─▶ RewardRule.score ─▶ Score

What is no reward by the run's rule (beyond its range, a component given twice) is no answer, and is asked for again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from vcppo.common.config import JudgeConfig, RewardServiceConfig, RewardSourceConfig, VcppoConfig
from vcppo.common.config.reward_sources import template_problem
from vcppo.common.errors import ConfigError
from vcppo.common.files.secret_file import read_secret
from vcppo.common.rewards.reward_parts import SOURCE
from vcppo.common.rewards.reward_rule import RewardRule, Score
from vcppo.generator.reward_sources.exchange import Batching, Exchange
from vcppo.generator.reward_sources.http_post import HttpPost
from vcppo.generator.reward_sources.items import Answers, Asked, Asker, Said
from vcppo.generator.reward_sources.judge_form import chat_request, filled, grade_in, reply_in, reward_of
from vcppo.generator.reward_sources.service_form import BYTES_OF_ITEM, read_answer, request_of

_CHAT_BYTES = 1 << 20


class ServiceAsker:
    """A reward service: `service_form` over HTTP."""

    def __init__(self, setting: str, config: RewardServiceConfig) -> None:
        self._post = _http_post(setting, config, config.url or "")
        self._with_messages = config.send_messages

    async def request(self, items: Sequence[Asked]) -> Answers:
        """Ask about these, in one request."""
        body = await self._post.post(request_of(items, self._with_messages), (len(items) + 4) * BYTES_OF_ITEM)
        return read_answer(body, [item.id for item in items])

    async def close(self) -> None:
        """Close its connections."""
        await self._post.close()


class JudgeAsker:
    """A judge: one chat completion for one response.

    Args:
        wrong, correct: rewards that the ends of ``task.judge.scale`` become.
    """

    def __init__(self, setting: str, config: JudgeConfig, wrong: float, correct: float) -> None:
        self._config, self._wrong, self._correct = config, wrong, correct
        self._template = _template(config)
        self._post = _http_post(setting, config, f"{(config.url or '').rstrip('/')}/chat/completions")

    async def request(self, items: Sequence[Asked]) -> Answers:
        """Ask about one."""
        (item,) = items
        try:
            text = filled(self._template, item)
        except ValueError as error:
            return Answers({}, {item.id: str(error)})
        body = await self._post.post(chat_request(self._config, text), _CHAT_BYTES)
        try:
            grade = grade_in(self._config, reply_in(body))
        except ValueError as error:
            return Answers({}, {item.id: str(error)})
        return Answers({item.id: Said(reward_of(self._config, grade, self._wrong, self._correct))})

    async def close(self) -> None:
        """Close its connections."""
        await self._post.close()


class RewardSource:
    """Gives responses their rewards. Make it (`open_source`), ``await score(...)``, ``await close()``.

    Attributes:
        gives_outcomes: it may replace the verifier's outcome.
    """

    def __init__(self, rule: RewardRule, name: str, config: RewardSourceConfig, asker: Asker) -> None:
        self._rule, self.asker = rule, asker
        self._votes = config.votes if isinstance(config, JudgeConfig) else 1
        self.gives_outcomes = isinstance(config, RewardServiceConfig)
        batching = (
            Batching(config.batch_size, config.batch_wait_seconds) if isinstance(config, RewardServiceConfig) else None
        )
        self._exchange: Exchange[Score] = Exchange(name, config, asker, batching)

    @property
    def away_seconds(self) -> float:
        """How long it has been away; 0: it is there."""
        return self._exchange.away_seconds

    async def score(self, asked: Asked) -> Score:
        """The reward of a response, by the run's rule. One that the verifier has no verdict on is not asked about.

        Raises:
            SourceAway, NoReward: see `Exchange.ask`.
        """
        if asked.verdict.outcome in ("timeout", "crash"):
            verdict, turns = asked.verdict, asked.turn_rewards
            number = None if turns is None else verdict.reward
            return self._rule.score(verdict.outcome, number, verdict.components, asked.num_tokens, turns or ())
        votes = [
            asyncio.create_task(self._exchange.ask(asked, lambda said: scored(self._rule, asked, said)))
            for _ in range(self._votes)
        ]
        try:
            scores = await asyncio.gather(*votes)
        finally:
            for vote in votes:
                vote.cancel()
        return scores[0] if len(scores) == 1 else self._mean(asked, scores)

    def _mean(self, asked: Asked, scores: Sequence[Score]) -> Score:
        numbers = [score.components[asked.number_is] for score in scores]
        return scored(self._rule, asked, Said(sum(numbers) / len(numbers)))

    async def until_reachable(self) -> None:
        """Wait while it is away."""
        await self._exchange.until_reachable()

    def take_figures(self) -> Mapping[str, float]:
        """Metrics: of now, and counted since the last call."""
        exchange = self._exchange
        figures, exchange.figures = exchange.figures, type(exchange.figures)()
        return {
            "reward_source/waiting": float(exchange.num_waiting),
            "reward_source/away": exchange.away_seconds,
            "reward_source/requests": float(figures.requests),
            "reward_source/failed_requests": float(figures.failed_requests),
            "reward_source/bad_answers": float(figures.bad_answers),
            "reward_source/handed_back": float(figures.handed_back),
            "reward_source/rejected": float(figures.rejected),
            **({"reward_source/seconds": figures.seconds / figures.answered} if figures.answered else {}),
        }

    async def close(self) -> None:
        """End what is under way."""
        await self._exchange.close()


def scored(rule: RewardRule, asked: Asked, said: Said) -> Score:
    """The verdict with what the source says. ValueError: that makes no reward.

    With one turn its number is the base. With several the turns' rewards are, and its number is a component.
    """
    verdict, turns = asked.verdict, asked.turn_rewards
    own = verdict.components if turns is None else {**verdict.components, SOURCE: said.reward}
    if twice := sorted(said.components.keys() & own.keys()):
        raise ValueError(f"components: {twice[0]!r} is given by the task's verifier too")
    outcome = verdict.outcome if said.outcome is None else said.outcome
    number = said.reward if turns is None else verdict.reward
    score = rule.score(outcome, number, {**own, **said.components}, asked.num_tokens, turns or ())
    if score.fault is not None:
        raise ValueError(score.fault)
    return score


def open_source(config: VcppoConfig) -> RewardSource | None:
    """The run's source of rewards, within an event loop; None: the task's own code gives them.

    Raises:
        ConfigError: key, certificates or template can't be used.
    """
    task, rule = config.task, config.reward_rule
    source, name = task.reward_source, task.reward_source_name
    if source is None:
        return None
    asker: Asker
    if isinstance(source, JudgeConfig):
        asker = JudgeAsker(name, source, task.reward_wrong, task.reward_correct)
    else:
        asker = ServiceAsker(name, source)
    return RewardSource(rule, name, source, asker)


def _http_post(setting: str, config: RewardServiceConfig | JudgeConfig, url: str) -> HttpPost:
    if config.key_file is not None:
        key: str | None = read_secret(f"{setting}.key_file", config.key_file)
    else:
        key = os.environ.get(config.key_variable, "").strip() or None
    return HttpPost(
        setting,
        url,
        key=key,
        ca_file=config.ca_file,
        deadline_seconds=config.deadline_seconds,
        concurrency=config.max_concurrency,
    )


def _template(config: JudgeConfig) -> str:
    if config.template_file is None:
        return config.template
    try:
        template = Path(config.template_file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"task.judge.template_file = {config.template_file!r} can't be read ({error}): write the template into it"
        ) from None
    if problem := template_problem(template):
        raise ConfigError(f"task.judge.template_file = {config.template_file!r}: {problem}")
    return template

"""The task: where prompts come from, how responses are verified, and what they earn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from vcppo.common.config.base import Pattern, Positive, Seconds, Section
from vcppo.common.config.reward_sources import JudgeConfig, RewardServiceConfig
from vcppo.common.records.trajectory import DEFAULT_LIMITS
from vcppo.common.rewards.reward_functions import component_of
from vcppo.common.rewards.reward_parts import FORMAT, MAX_NUMBER, SOURCE
from vcppo.common.rewards.reward_rule import RewardRule, bounds

Weight = Annotated[float, Field(ge=-MAX_NUMBER, le=MAX_NUMBER)]


class RewardFunctionConfig(Section):
    """One reward function."""

    name: str
    """module:function of your own. It takes (answer, response, finish_reason), and messages if it likes, and returns a
    number: the component of that name. It runs in the verifier's child, within the same deadline."""

    weight: Weight = 1.0
    """What its value is multiplied by; 0: it is drawn only."""


class TaskConfig(Section):
    """Where prompts come from and how responses are verified."""

    name: str = "chain_arithmetic"
    """A built-in task (aime, chain_arithmetic, code, command_agent, dataset, gpqa, hidden_choices, look_up, mix,
    products, reasoning_gym, tools, verifiers), or module:Class of your own."""

    options: dict[str, object] = Field(default_factory=dict)
    """Passed to the task; each task documents its own."""

    overlong: Literal["refuse", "skip"] = "refuse"
    """A prompt that leaves no room for sampling.max_response_tokens in generator.max_model_len. refuse: the learner
    looks at all prompts when it starts, and ends, naming the rows. skip: another problem takes its place, with a log
    line. A task without an end can't be looked through: there it is always skip. An evaluation refuses or leaves out
    held-out problems in the same way, and says how many."""

    verifier_timeout_seconds: Seconds = 5.0
    """A verifier child that takes longer is killed; the outcome is `timeout`. So with a call of an environment."""

    verifier_memory_mib: int = Field(default=4096, ge=256)
    """What a child in which the task runs may hold; when a response makes it need more, the outcome is `crash`."""

    verifier_processes: Positive = 1
    """Children per generator in which the task runs: verifiers, or environments."""

    max_turns: Positive = 8
    """Turns of the policy in an environment (docs/environments.md) or by an agent (docs/agents.md). A rollout cut here
    has finish reason `length`."""

    max_segments: int = Field(default=8, ge=1, le=DEFAULT_LIMITS.max_segments)
    """Conversations that one rollout of an agent may have, each trained as a trajectory of its own (docs/agents.md). A
    request that would begin another is refused. 1: every request must go on from the one before."""

    max_rollout_seconds: Seconds = 300.0
    """An environment's rollout begins no further turn after so long; it then has finish reason `length`. An agent is
    ended after so long, with outcome `timeout`. A batch waits for its slowest rollout, so keep it below
    `learner.batch_deadline_seconds`."""

    environment_calls: Positive = 64
    """Calls of an async environment, or agents, at the same time, per generator."""

    endpoint_host: str = Field(default="127.0.0.1", pattern=r"^[0-9A-Za-z.:_-]+$")
    """Address of the generator's machine that the endpoint for agents binds to and is announced at. Beyond the loopback
    agents on other machines reach it, and so does everybody there: only a session's key lets in, and it travels
    unencrypted (docs/agents.md)."""

    reward_correct: float = 1.0
    """Reward of a correct response (paper: +1)."""

    reward_wrong: float = -1.0
    """Reward of anything else the verifier judged: wrong, unparsable, timeout, crash (paper: -1)."""

    reward_range: list[float] | None = Field(default=None, min_length=2, max_length=2)
    """Least and greatest reward, [low, high]. A response whose sum is beyond has outcome `crash`, and that sum is not
    trained. null: what the rewards by outcome and the settings below can make, components between -1 and 1."""

    reward_weights: dict[str, Weight] = Field(default_factory=dict)
    """Weight by name of the components that the task's verdicts give, of `format`, and in a task of several turns of
    `source`, the number of a service or judge. A component without a weight is drawn and adds nothing
    (docs/rewards.md)."""

    rewards: list[RewardFunctionConfig] = Field(default_factory=list, max_length=16)
    """Functions of your own module whose values are added to the reward."""

    format_pattern: Pattern | None = None
    """Regular expression, searched for in the response: component `format` is 1 where it is found, else 0. Its weight
    is task.reward_weights.format."""

    soft_overlong_cache: int = Field(default=0, ge=0)
    """Soft overlong penalty (DAPO): over the last so many tokens before sampling.max_response_tokens it falls from 0 to
    minus task.soft_overlong_penalty. 0: none."""

    soft_overlong_penalty: float = Field(default=1.0, gt=0, le=MAX_NUMBER)
    """What it takes from the reward of a response of sampling.max_response_tokens."""

    length_cost: float = Field(default=0.0, ge=0, le=MAX_NUMBER)
    """Taken from the reward for each token of the response."""

    reward_service: RewardServiceConfig = RewardServiceConfig()
    """Gives the number, over HTTP."""

    judge: JudgeConfig = JudgeConfig()
    """Gives the number: a language model that is asked."""

    @property
    def reward_source(self) -> RewardServiceConfig | JudgeConfig | None:
        """Who gives the number, where it is not the task's own code."""
        return next((each for each in (self.reward_service, self.judge) if each.url is not None), None)

    @property
    def reward_source_name(self) -> str:
        """The section of `reward_source`."""
        return "task.judge" if self.reward_source is self.judge else "task.reward_service"

    def reward_rule(self, max_response_tokens: int) -> RewardRule:
        """How rewards are made; `max_response_tokens` is ``sampling.max_response_tokens``."""
        rule = self._rule(max_response_tokens)
        (least, greatest), (low, high) = self._bounds(rule)
        if self.reward_range is not None:  # what is known to be possible is within, whatever the rounding
            low, high = min(self.reward_range[0], least), max(self.reward_range[1], greatest)
        return replace(rule, low=low, high=high)

    def known_rewards(self, max_response_tokens: int) -> tuple[float, float]:
        """(least, greatest) reward that outcome, format and length make, other components being 0."""
        return self._bounds(self._rule(max_response_tokens))[0]

    def _rule(self, max_response_tokens: int) -> RewardRule:
        functions = {component_of(each.name): each.weight for each in self.rewards}
        return RewardRule(
            correct=self.reward_correct,
            wrong=self.reward_wrong,
            weights={**self.reward_weights, **functions},
            expected=frozenset(functions) | set(self._expected()),
            max_response_tokens=max_response_tokens,
            soft_overlong_cache=self.soft_overlong_cache,
            soft_overlong_penalty=self.soft_overlong_penalty,
            length_cost=self.length_cost,
        )

    def _expected(self) -> Iterator[str]:
        """Components beside the functions' that every verdict has."""
        if self.format_pattern is not None:
            yield FORMAT
        if self.reward_source is not None and SOURCE in self.reward_weights:
            yield SOURCE

    def _bounds(self, rule: RewardRule) -> tuple[tuple[float, float], tuple[float, float]]:
        others = dict(rule.weights)
        of_format = others.pop(FORMAT, None) if self.format_pattern is not None else None
        return bounds(rule, of_format, others)

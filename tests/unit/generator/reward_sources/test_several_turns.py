"""A source's number in a task of several turns: a part of the reward beside the turns' own, by the one rule."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest

from vcppo.common.config import TaskConfig
from vcppo.common.rewards.reward_rule import RewardRule
from vcppo.common.tasks import Verdict
from vcppo.generator.reward_sources.items import Answers, Asked, Said
from vcppo.generator.reward_sources.source import RewardSource, scored

TASK: dict[str, Any] = {
    "judge": {"url": "http://127.0.0.1:1/v1", "model": "m", "votes": 3},
    "reward_weights": {"source": 0.5, "steps": 0.25},
    "length_cost": 0.001,
}


def rule(**settings: Any) -> RewardRule:
    return TaskConfig.model_validate({**TASK, **settings}).reward_rule(100)


def asked(*turns: float, outcome: Any = "correct") -> Asked:
    verdict = Verdict(outcome, None, math.fsum(turns), {"steps": 2.0})
    return Asked("a", "p", {}, "r", "stop", 10, verdict, turns)


def test_the_turns_are_the_base_and_the_number_is_a_part() -> None:
    score = scored(rule(), asked(0.25, -0.5), Said(0.5, "wrong", {"tone": 1.0}))
    parts = {"base": -0.25, "source": 0.5, "steps": 2.0, "tone": 1.0, "length_cost": -0.01}
    assert (score.outcome, score.components) == ("wrong", parts)
    assert score.reward == math.fsum([-0.25, 0.5 * 0.5, 0.25 * 2.0, -0.01])
    rule().check(score.outcome, score.reward, score.components, 10, (0.25, -0.5))
    with pytest.raises(ValueError, match="source missing"):
        rule().check("wrong", -0.26, {"base": -0.25, "length_cost": -0.01}, 10, (0.25, -0.5))


def test_the_range_has_room_for_it() -> None:
    assert (rule().low, rule().high) == pytest.approx((-1 - 0.5 - 0.25 - 0.1, 1 + 0.5 + 0.25))
    with pytest.raises(ValueError, match=r"beyond task.reward_range"):
        scored(rule(), asked(1.0), Said(1.5))
    with pytest.raises(ValueError, match="'source' is given by"):
        scored(rule(), asked(1.0), Said(0.5, None, {"source": 1.0}))


class Voting:
    """Each request gets the next number."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self.numbers = list(numbers)

    async def request(self, items: Sequence[Asked]) -> Answers:
        return Answers({items[0].id: Said(self.numbers.pop(0))})

    async def close(self) -> None: ...


def test_votes_are_averaged_and_a_fault_is_not_asked_about() -> None:
    async def body() -> None:
        asker = Voting([0.25, 0.5, 0.75])
        source = RewardSource(rule(), "task.judge", TaskConfig.model_validate(TASK).judge, asker)
        score = await source.score(asked(0.25, 0.25))
        assert (score.components["source"], score.components["base"]) == (0.5, 0.5) and not asker.numbers
        fault = asked()._replace(verdict=Verdict("timeout", None))
        assert (await source.score(fault)).components == {"length_cost": -0.01}
        by_itself = await source.score(asked(-0.5, outcome="crash"))  # an environment that calls it so, with a number
        assert by_itself.components["base"] == -0.5 and "source" not in by_itself.components
        await source.close()

    asyncio.run(body())

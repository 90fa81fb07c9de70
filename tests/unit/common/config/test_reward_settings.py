"""Settings that make a reward: their range, what they say in a run that knew none of them, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from vcppo.common.config import VcppoConfig, config_warnings
from vcppo.common.config.dependents import Begun, Change, consequence, flat, settings_of
from vcppo.common.evaluation.evaluation_inputs import continuation_inputs, evaluation_inputs


def config_of(**task: Any) -> VcppoConfig:
    return VcppoConfig.model_validate(
        {"model": {"path": "m"}, "sampling": {"max_response_tokens": 100}, "task": task, "critic": {"head": "hl_gauss"}}
    )


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({}, (-1.0, 1.0)),
        ({"reward_correct": 2.0, "reward_wrong": 0.0}, (0.0, 2.0)),
        ({"soft_overlong_cache": 20}, (-2.0, 1.0)),
        ({"soft_overlong_cache": 20, "soft_overlong_penalty": 0.5, "length_cost": 0.01}, (-2.5, 1.0)),
        ({"format_pattern": "x", "reward_weights": {"format": 0.25}}, (-1.0, 1.25)),
        ({"format_pattern": "x", "reward_weights": {"format": -0.25}}, (-1.25, 1.0)),
        ({"reward_weights": {"format": 0.25}}, (-1.25, 1.25)),  # the task's own part, of any sign
        ({"rewards": [{"name": "m:f", "weight": -0.5}], "reward_weights": {"steps": 0.25}}, (-1.75, 1.75)),
        ({"rewards": [{"name": "m:f"}], "reward_range": [-1.0, 3.0]}, (-1.0, 3.0)),
    ],
)
def test_the_range_follows_from_the_settings(task: dict[str, Any], expected: tuple[float, float]) -> None:
    config = config_of(**task)
    rule = config.reward_rule
    assert (rule.low, rule.high) == expected
    assert config.critic.value_range((rule.low, rule.high)) == (min(expected[0], 0.0), max(expected[1], 0.0))


@pytest.mark.parametrize(
    ("task", "text"),
    [
        ({"reward_range": [-1.0, 0.5]}, r"task.reward_range = \[-1, 0.5\]: .* set it to \[-1, 1\], or leave it out"),
        ({"reward_range": [-1.0, 1.0], "length_cost": 0.01}, r"rewards from -2 to 1 are possible .* \[-2, 1\]"),
        ({"reward_weights": {"accuracy": 1.0}}, "task.reward_weights.accuracy: 'accuracy' is a name of vcppo's own"),
        ({"reward_weights": {"a/b": 1.0}}, "task.reward_weights.a/b: no component can have that name"),
        ({"rewards": [{"name": "brevity"}]}, "'brevity' is not of the form module:function"),
        ({"rewards": [{"name": "m:base"}]}, "m:base: 'base' is a name of vcppo's own"),
        ({"rewards": [{"name": "m:f"}, {"name": "n:f"}]}, "n:f: another function gives component 'f' already"),
        ({"rewards": [{"name": "m:f"}], "reward_weights": {"f": 1.0}}, "stands in task.rewards: leave one of the two"),
        ({"rewards": [{"name": "m:format"}], "format_pattern": "x"}, "a function of task.rewards gives 'format' too"),
        ({"soft_overlong_cache": 101}, "more than sampling.max_response_tokens = 100: set it to 100 or less"),
        ({"soft_overlong_penalty": 2.0}, "has no effect with task.soft_overlong_cache = 0"),
        ({"length_cost": 1e5}, "the buffer accepts none beyond 1e"),
        ({"reward_weights": {"x": 1e7}}, "less than or equal to 1000000"),
        ({"rewards": [{"name": "m:f", "weight": float("nan")}]}, "finite number"),
        ({"format_pattern": "("}, "is no regular expression"),
        ({"reward_range": [1.0]}, "at least 2 items"),
    ],
)
def test_contradictions_are_refused_by_field_and_value(task: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError, match=text):
        config_of(**task)


def test_a_value_range_that_graded_rewards_leave_names_the_range() -> None:
    with pytest.raises(ValidationError, match=r"critic.value_min = -1: returns down to -2 .* \(task.reward_range,"):
        VcppoConfig.model_validate(
            {
                "model": {"path": "m"},
                "task": {"soft_overlong_cache": 2},
                "critic": {"head": "two_hot", "value_min": -1.0},
            }
        )


def test_notes_of_before_these_settings_still_fit() -> None:
    """A recording or checkpoint that knows none of them is of the same settings, until one is used."""
    plain, graded = (
        settings_of("recording", flat(c.model_dump(mode="json"))) for c in (config_of(), config_of(length_cost=0.01))
    )
    new = {"reward_range", "reward_weights", "rewards", "format_pattern", "soft_overlong_cache", "length_cost"}
    assert not {f"task.{name}" for name in new} & plain.keys()
    assert not [name for name in plain if name.startswith(("task.reward_service", "task.judge"))]
    assert graded.keys() - plain.keys() == {"task.length_cost"}


def test_evaluations_go_by_what_judges_and_continuations_by_what_rewards() -> None:
    def kinds(**task: Any) -> tuple[str, str]:
        config = config_of(**task)
        return tuple(  # type: ignore[return-value]
            json.dumps(each, default=str) for each in (evaluation_inputs(config, "m"), continuation_inputs(config, "w"))
        )

    plain = kinds()
    assert kinds(reward_range=[-1.0, 1.0]) == plain
    for shaping in ({"length_cost": 0.01}, {"reward_weights": {"x": 1.0}}, {"reward_range": [-2.0, 1.0]}):
        evaluated, continued = kinds(**shaping)
        assert evaluated == plain[0] and continued != plain[1]
    for judging in ({"rewards": [{"name": "json:dumps"}]}, {"format_pattern": "x"}):
        assert all(now != before for now, before in zip(kinds(**judging), plain, strict=True))
    evaluated, continued = kinds(judge={"url": "http://a/v1", "model": "m"})  # it gives numbers, no outcomes
    assert evaluated == plain[0] and continued != plain[1]
    for service in ({"url": "http://a"}, {"url": "http://b"}):
        assert all(now != before for now, before in zip(kinds(reward_service=service), plain, strict=True))
    quicker = {"url": "http://a", "deadline_seconds": 1.0, "key_file": "key"}
    assert kinds(reward_service=quicker) == kinds(reward_service={"url": "http://a"})
    assert continuation_inputs(config_of(), "w")["rewards"] == [1.0, -1.0]  # as it was noted before


def test_what_may_change_of_a_source_on_a_run() -> None:
    def change(name: str) -> tuple[str, ...]:
        return tuple(consequence(Change(name, 1, 2), Begun(*begun)) for begun in ((False, True), (True, False)))

    assert change("task.reward_service.url") == ("rl_goes_on", "refused")
    assert change("task.reward_service.deadline_seconds") == change("task.judge.key_file") == ("nothing", "nothing")
    assert change("task.judge.template") == ("refused", "refused")


def test_what_a_source_is_warned_of() -> None:
    source = {"url": "http://elsewhere/reward", "key_file": "key", "patience_seconds": 900.0}
    found = [text for text in config_warnings(config_of(reward_service=source)) if "reward_service" in text]
    assert len(found) == 2 and "raise the latter above it" in found[0] and "use an https address" in found[1]
    here = source | {"url": "http://127.0.0.1/reward", "patience_seconds": 60.0}
    assert not [text for text in config_warnings(config_of(reward_service=here)) if "reward_service" in text]

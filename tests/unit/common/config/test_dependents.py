"""What depends on which setting: a table over all of them, and what a change means for a run that has come so far."""

from __future__ import annotations

import pytest

from vcppo.common.config import config_fields
from vcppo.common.config.dependents import (
    DEPENDENTS,
    Begun,
    Change,
    consequence,
    dependents_of,
    settings_of,
    start_over,
)

NOTHING, RECORDED = Begun(), Begun(recorded=True, longest_tokens=400)
TRAINED = Begun(recorded=True, rl=True, longest_tokens=400)
FIELDS = [field.name for field in config_fields()]


def test_every_setting_stands_in_the_table() -> None:
    unknown = [name for name in FIELDS if not any(name == key or name.startswith(key) for key in DEPENDENTS)]
    assert unknown == []


def test_an_unknown_setting_is_taken_to_shape_everything() -> None:
    assert dependents_of("novel.field").recording


@pytest.mark.parametrize("field", FIELDS)
def test_before_anything_was_made_anything_may_change(field: str) -> None:
    assert consequence(Change(field, 1, 2), NOTHING) == "nothing"


@pytest.mark.parametrize(
    ("field", "recorded", "trained"),
    [
        ("value_pretraining.learning_rate", "critic_again", "refused"),
        ("value_pretraining.max_steps", "critic_again", "refused"),
        ("value_pretraining.held_out_fraction", "critic_again", "refused"),
        ("value_pretraining.recordings", "critic_again", "refused"),
        ("value_pretraining.num_trajectories", "recording_goes_on", "refused"),
        ("value_pretraining.min_explained_variance", "nothing", "nothing"),
        ("rl.actor_learning_rate", "nothing", "rl_goes_on"),
        ("rl.weight_decay", "critic_again", "rl_goes_on"),
        ("rl.group_size", "refused", "refused"),
        ("algorithm.clip_high", "nothing", "rl_goes_on"),
        ("algorithm.gamma", "critic_again", "rl_goes_on"),
        ("algorithm.advantage_estimator", "nothing", "refused"),
        ("critic.init", "nothing", "refused"),
        ("critic.model", "critic_again", "refused"),
        ("critic.freeze", "critic_again", "refused"),
        ("critic.head", "critic_again", "refused"),
        ("critic.num_bins", "critic_again", "refused"),
        ("critic.sees_log_probs", "critic_again", "refused"),
        ("rl.actor_freeze", "nothing", "refused"),
        ("rl.critic_freeze", "nothing", "refused"),
        ("sampling.temperature", "refused", "refused"),
        ("sampling.max_response_tokens", "refused", "refused"),
        ("task.options.path", "refused", "refused"),
        ("task.reward_correct", "refused", "refused"),
        ("task.verifier_timeout_seconds", "refused", "rl_goes_on"),
        ("model.path", "refused", "refused"),
        ("sft.init", "refused", "refused"),
        ("generator.max_model_len", "nothing", "nothing"),
        ("learner.num_ranks", "nothing", "rl_goes_on"),
        ("learner.zero_stage", "nothing", "rl_goes_on"),
        ("redis.url", "nothing", "nothing"),
        ("transport.endpoints", "nothing", "nothing"),
    ],
)
def test_what_a_raised_setting_means(field: str, recorded: str, trained: str) -> None:
    change = Change(field, 1, 2)
    assert consequence(change, RECORDED) == recorded
    assert consequence(change, TRAINED) == trained


def test_some_depend_on_the_way_they_change() -> None:
    assert consequence(Change("value_pretraining.num_trajectories", 64, 32), RECORDED) == "critic_again"
    assert consequence(Change("generator.max_model_len", 512, 400), RECORDED) == "nothing"
    assert consequence(Change("generator.max_model_len", 512, 399), RECORDED) == "refused"
    assert consequence(Change("generator.max_model_len", 512, 400), Begun(recorded=True)) == "refused"
    assert consequence(Change("generator.max_model_len", 512, 400), TRAINED) == "refused"


def test_without_a_recording_its_settings_shape_nothing() -> None:
    assert consequence(Change("value_pretraining.max_steps", 1, 2), Begun(rl=True)) == "nothing"


def test_what_has_to_start_over() -> None:
    sampling, critic, cold = (Change(f, 1, 2) for f in ("sampling.top_p", "critic.init", "sft.init"))
    assert start_over([critic], TRAINED) == "rl"
    assert start_over([critic, sampling], TRAINED) == "value_pretraining"
    assert start_over([sampling], Begun(rl=True)) == "rl"
    assert start_over([cold, sampling], TRAINED) == "run"


def test_settings_by_what_they_shape() -> None:
    tree = {
        "sampling.top_p": 1,
        "value_pretraining.max_steps": 2,
        "value_pretraining.min_explained_variance": 3,
        "rl.actor_learning_rate": 4,
        "rl.weight_decay": 5,
        "logging.level": 6,
        "run.name": 7,
    }
    assert settings_of("recording", tree).keys() == {"sampling.top_p"}
    assert settings_of("critic", tree).keys() == {"sampling.top_p", "value_pretraining.max_steps", "rl.weight_decay"}
    assert settings_of("rl", tree).keys() == {"sampling.top_p", "rl.actor_learning_rate", "rl.weight_decay"}

"""Ids: what is made can be taken apart again, and nobody else takes one apart."""

from __future__ import annotations

import ast
from contextlib import suppress
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scripts import measures
from vcppo.common.records import ids
from vcppo.common.records.trajectory import Purpose

PURPOSES = st.sampled_from(get_args(Purpose))
NUMBERS = st.integers(0, 10**17)
TEXT = st.text(min_size=1)
GENERATORS = TEXT.filter(lambda text: "@" not in text)
INCARNATIONS = GENERATORS.filter(lambda text: "." not in text and "#" not in text)


@given(PURPOSES, NUMBERS)
def test_a_group_id_is_what_it_was_made_of(purpose: Purpose, number: int) -> None:
    assert ids.parse_group_id(ids.make_group_id(purpose, number)) == (purpose, number)


@given(TEXT, NUMBERS)
def test_a_prompt_id_is_what_it_was_made_of(group_id: str, sample: int) -> None:
    assert ids.parse_prompt_id(ids.make_prompt_id(group_id, sample)) == (group_id, sample)


@given(TEXT, GENERATORS, INCARNATIONS)
def test_a_trajectory_id_is_what_it_was_made_of(prompt_id: str, generator_id: str, incarnation: str) -> None:
    made = ids.make_trajectory_id(prompt_id, generator_id, incarnation)
    assert ids.parse_trajectory_id(made) == (prompt_id, generator_id, incarnation, 0)
    assert ids.prompt_of(made) == ids.prompt_named_by(made) == prompt_id


@given(TEXT, GENERATORS, INCARNATIONS, st.integers(1, 10**6))
def test_a_segments_id_is_the_trajectorys_and_its_number(
    prompt_id: str, generator_id: str, incarnation: str, number: int
) -> None:
    whole = ids.make_trajectory_id(prompt_id, generator_id, incarnation)
    made = ids.make_segment_id(whole, number)
    assert ids.parse_trajectory_id(made) == (prompt_id, generator_id, incarnation, number)
    assert ids.prompt_of(made) == ids.prompt_named_by(made) == prompt_id
    assert ids.is_within(made, whole) and ids.is_within(made, prompt_id) and not ids.is_within(whole, made)
    assert made not in (whole, ids.make_segment_id(whole, number + 1))


@pytest.mark.parametrize("text", ["p@g.1#", "p@g.1#x", "p@g.#1", "p@g.1#-1"])
def test_what_is_no_segment_is_refused(text: str) -> None:
    with pytest.raises(ids.IdError, match="is not the id of a trajectory"):
        ids.parse_trajectory_id(text)


@given(TEXT, TEXT.filter(lambda text: "-" not in text))
def test_a_process_name_is_what_it_was_made_of(role: str, which: str) -> None:
    assert ids.parse_process_name(ids.make_process_name(role, which)) == (role, which)


@given(PURPOSES, NUMBERS, NUMBERS, GENERATORS, INCARNATIONS)
def test_an_id_tells_its_stage_its_group_and_its_prompt(
    purpose: Purpose, number: int, sample: int, generator_id: str, incarnation: str
) -> None:
    group = ids.make_group_id(purpose, number)
    prompt = ids.make_prompt_id(group, sample)
    trajectory = ids.make_trajectory_id(prompt, generator_id, incarnation)
    assert {ids.purpose_of(text) for text in (group, prompt, trajectory)} == {purpose}
    assert all(ids.is_within(trajectory, whole) for whole in (group, prompt, trajectory))
    assert not ids.is_within(prompt, trajectory)
    assert not ids.is_within(trajectory, ids.make_prompt_id(group, sample + 1))


@given(TEXT)
def test_any_text_is_an_id_or_is_refused(text: str) -> None:
    for parse in (ids.parse_group_id, ids.parse_prompt_id, ids.parse_trajectory_id):
        with suppress(ids.IdError):
            parse(text)
    assert ids.purpose_of(text) in (None, *get_args(Purpose))


@pytest.mark.parametrize(
    "text", ["", "rl", "rl-", "rl-x", "sft-00000001", "rl-00000001-3", "rl--1", "rl-٣", "rl-" + "9" * 5000]
)
def test_what_is_no_group_is_refused(text: str) -> None:
    with pytest.raises(ids.IdError, match="is not the id of a group"):
        ids.parse_group_id(text)


@pytest.mark.parametrize("text", ["", "3", "-3", "rl-00000001-", "rl-00000001-x"])
def test_what_is_no_prompt_is_refused(text: str) -> None:
    with pytest.raises(ids.IdError, match="is not the id of a prompt"):
        ids.parse_prompt_id(text)


@pytest.mark.parametrize("text", ["", "p", "p@", "p@g", "p@g.", "p@.1", "@g.1"])
def test_what_is_no_trajectory_is_refused(text: str) -> None:
    with pytest.raises(ids.IdError, match="is not the id of a trajectory"):
        ids.parse_trajectory_id(text)


def test_groups_of_an_evaluation_say_which_version_they_are_for() -> None:
    group = ids.make_group_id("evaluation", ids.make_evaluation_number(12, 34))
    assert (group, ids.evaluated_version(group), ids.purpose_of(f"{group}-3")) == ("eval-01200034", 12, "evaluation")
    assert ids.evaluated_version(ids.make_group_id("evaluation", ids.make_evaluation_number(0, 99_999))) == 0
    assert ids.evaluated_version(ids.make_group_id("rl", 1_200_034)) is None


def test_evaluations_of_a_model_are_of_no_version() -> None:
    group = ids.make_evaluation_group_id("0123abcd-2")
    assert ids.parse_prompt_id(ids.make_prompt_id(group, 7)) == ("eval-0123abcd-2", 7)
    assert ids.purpose_of(group) == "evaluation" and ids.evaluated_version(group) is None


def test_the_only_process_of_a_role_has_no_number() -> None:
    assert ids.parse_process_name("buffer") == ("buffer", "")
    assert ids.is_process_of("buffer", "buffer")
    assert ids.is_process_of("generator-1", "generator")
    assert not ids.is_process_of("generators", "generator")


OTHER_TEXTS = {  # what is taken apart there is no id of ours
    "common.records.ids": "they are its own",
    "common.store.codec": "hides passwords in URLs",
    "common.environments.verifiers_program": "a package's name and version",
    "deploy.placement.gpus": "ranges of CPUs",
    "deploy.slurm.cluster": "days of a Slurm time",
}


def test_nobody_else_takes_ids_apart() -> None:
    apart = ("split", "rsplit", "partition", "rpartition")
    elsewhere = [
        f"{module.name}:{node.lineno}"
        for module in measures.modules().values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (node.func.attr in apart or node.func.attr == "startswith")
        and node.args
        and isinstance(node.args[0], ast.Constant)
        and node.args[0].value in (("-", "@") if node.func.attr in apart else ("vp-", "rl-"))
        and module.name not in OTHER_TEXTS
    ]
    assert elsewhere == []

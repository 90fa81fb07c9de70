"""The prompts of an evaluation and what their answers come to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.unit.learner.evaluation.answers import answer_to
from tests.unit.rig.fake_run import config_of
from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.held_out import HeldOut, held_out_problems, sample_seed
from vcppo.common.evaluation.intervals import wilson
from vcppo.common.records.trajectory import Segment, VersionSpan
from vcppo.common.tasks import Problem, load_task
from vcppo.learner.evaluation.held_out_prompts import HeldOutPrompts, metrics_of

PROBLEMS = [Problem(f"what is {n}?", {"n": n}) for n in range(4)]


def config(tmp_path: Path, **settings: object) -> VcppoConfig:
    made = config_of(tmp_path, "r")
    return made.model_copy(update={"eval": made.eval.model_copy(update=settings)})


def encode(prompt: object) -> np.ndarray:
    return np.frombuffer(str(prompt).encode(), np.uint8).astype(np.int32)


def prompts_of(made_for: VcppoConfig, problems: list[Problem] = PROBLEMS) -> HeldOutPrompts:
    return HeldOutPrompts(made_for, {made_for.task.name: HeldOut(problems, 0)}, encode, is_open=False)


def test_versions_are_asked_the_same_under_names_of_their_own(tmp_path: Path) -> None:
    made = prompts_of(config(tmp_path, samples_per_problem=2, k=2))
    one, other = made.of(5), made.of(10)
    assert len(one) == len({prompt.id for prompt in [*one, *other]}) / 2 == 8
    assert [prompt.sample_index for prompt in one] == [0] * 4 + [1] * 4  # first every problem once
    assert [prompt.seed for prompt in one] == [prompt.seed for prompt in other]
    assert len({prompt.seed for prompt in one}) == 8
    assert {(prompt.purpose, prompt.issue_version) for prompt in one} == {("evaluation", 5)}
    again = prompts_of(config(tmp_path, samples_per_problem=1), PROBLEMS[2:])  # fewer of them: the same seeds
    assert [prompt.seed for prompt in again.of(5)] == [prompt.seed for prompt in one[2:4]]
    assert sample_seed(1, "a", 0) != sample_seed(2, "a", 0)


def test_figures_are_of_problems_that_have_all_their_samples(tmp_path: Path) -> None:
    made = prompts_of(config(tmp_path, samples_per_problem=2, k=2))
    prompts = made.of(3)
    right = {prompts[0].id, prompts[1].id, prompts[4].id}  # problem 0 twice, problem 1 once, problem 2 never
    answers = [answer_to(prompt, is_right=prompt.id in right) for prompt in prompts if prompt.id != prompts[7].id]
    row = made.figures(3, answers)
    assert row is not None
    assert (row["num_problems"], row["num_lost"], row["num_samples"]) == (3, 1, 6)
    assert (row["pass_at_1"], row["pass_at_k"]) == (0.5, 2 / 3)
    assert (row["outcomes"], row["versions_seen"]) == ({"correct": 3, "wrong": 3}, [3])
    metrics = metrics_of({**row, "seconds": 1.0, "stall_seconds": 0.25})
    assert (metrics["eval/accuracy"], metrics["eval/pass_at_k"], metrics["stage"]) == (0.5, 2 / 3, "evaluation")


def test_one_sample_a_problem_has_wilsons_interval(tmp_path: Path) -> None:
    made = prompts_of(config(tmp_path))
    row = made.figures(0, [answer_to(prompt, is_right=True) for prompt in made.of(0)])
    assert row is not None and row["pass_at_1_interval"] == wilson(4, 4)
    assert "eval/pass_at_k" not in metrics_of({**row, "seconds": 0.0, "stall_seconds": 0.0})


def test_all_conversations_of_an_agent_count_in_its_answers_length_and_versions(tmp_path: Path) -> None:
    made_for = config(tmp_path)
    made = HeldOutPrompts(made_for, {made_for.task.name: HeldOut(PROBLEMS, 0)}, encode, is_open=True)
    first, *others = (answer_to(prompt, is_right=True) for prompt in made.of(3))
    arrays = (getattr(first, name) for name in Segment._fields[:4])
    earlier = Segment(*arrays, version_spans=(VersionSpan(2, 3),), finish_reason="stop")
    row = made.figures(3, [replace(first, segments=(earlier,)), *others])
    assert row is not None and (row["num_samples"], row["mean_length"], row["versions_seen"]) == (4, 3.75, [2, 3])


def test_answers_to_other_prompts_or_of_other_versions_do_not_count(tmp_path: Path) -> None:
    made = prompts_of(config(tmp_path))
    answers = [answer_to(prompt, is_right=True) for prompt in made.of(7)]
    assert made.figures(8, answers) is None
    changed = replace(answers[0], prompt_token_ids=answers[0].prompt_token_ids + 1)
    row = made.figures(7, [changed, *answers[1:]])
    assert row is not None and (row["num_problems"], row["num_lost"]) == (3, 1)
    assert made.figures(7, []) is None


def test_a_benchmark_has_figures_of_its_own(tmp_path: Path) -> None:
    made_for = config(tmp_path)
    sets = {made_for.task.name: HeldOut(PROBLEMS, 0), "other": HeldOut(PROBLEMS[1:], 0)}
    made = HeldOutPrompts(made_for, sets, encode, is_open=True)
    prompts = made.of(3)
    assert [prompt.task for prompt in prompts] == [made_for.task.name] * 4 + ["other"] * 3
    assert [prompt.is_open for prompt in prompts] == [True] * 4 + [False] * 3
    assert len({prompt.id for prompt in prompts}) == 7
    row = made.figures(3, [answer_to(prompt, is_right=number in (0, 4, 5)) for number, prompt in enumerate(prompts)])
    assert row is not None and (row["pass_at_1"], row["benchmarks"]["other"]["pass_at_1"]) == (0.25, 2 / 3)
    metrics = metrics_of({**row, "seconds": 1.0, "stall_seconds": 0.0})
    assert (metrics["eval/accuracy"], metrics["eval/other/accuracy"]) == (0.25, 2 / 3)
    half = made.figures(3, [answer_to(prompt, is_right=True) for prompt in prompts[:4]])
    assert half is not None and half["benchmarks"] == {}
    assert (
        made.figures(3, [answer_to(prompt, is_right=True) for prompt in prompts[4:]]) is None
    )  # of its own there are none


def test_held_out_problems_are_those_of_vcppo_eval(tmp_path: Path) -> None:
    made_for = config(tmp_path)
    task = load_task(made_for.task)
    few, many = (held_out_problems(made_for, task, count, None).problems for count in (3, 9))
    assert [problem.prompt for problem in few] == [problem.prompt for problem in many[:3]]

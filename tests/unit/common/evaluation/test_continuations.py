"""Records of continuations: what is missing, what broke off, and the returns at a position."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vcppo.common.config import VcppoConfig
from vcppo.common.evaluation.continuations import Continuation, ContinuationFiles, Continued, LeftOut, Response, Wanted
from vcppo.common.evaluation.evaluation_inputs import continuation_inputs

WANTED = Wanted(num_responses=3, positions=(0, 2), num_continuations=2)


def response(problem: int, length: int = 4) -> Response:
    return Response(
        problem=problem, prompt=[3, 4], tokens=[5] * length, outcome="wrong", reward=-1.0, finish_reason="stop"
    )


def test_a_line_of_an_earlier_version_has_no_log_probs_and_one_with_too_few_is_none(tmp_path: Path) -> None:
    files = ContinuationFiles(tmp_path, "p")
    files.add(response(0))
    files.add(response(1).model_copy(update={"log_probs": [-0.5, -1.0, -2.0, 0.0]}))
    files.add(response(2).model_copy(update={"log_probs": [-0.5]}))
    (path,) = tmp_path.glob("p.0.jsonl")
    path.write_text(path.read_text().replace(', "log_probs": null', "").replace(',"log_probs":null', ""))
    assert path.read_text().count("log_probs") == 2
    found = files.read().responses
    assert found[0].log_probs is None
    assert found[1].log_probs == [-0.5, -1.0, -2.0, 0.0]
    assert 2 not in found


def continuation(problem: int, position: int, sample: int, reward: float = 1.0, length: int = 3) -> Continuation:
    return Continuation(
        problem=problem, position=position, sample=sample, outcome="correct", reward=reward, length=length
    )


def complete() -> Continued:
    """Problem 0 goes on beyond 2 tokens, problem 1 doesn't, problem 2 is too long."""
    found = Continued()
    for line in (response(0), response(1, length=2), LeftOut(problem=2, tokens=99)):
        found.add(line)
    for problem, position in ((0, 0), (0, 2), (1, 0)):
        for sample in range(2):
            found.add(continuation(problem, position, sample, reward=sample - position))
    return found


def test_it_is_complete_when_each_response_is_continued_wherever_it_goes_on() -> None:
    assert complete().is_complete(WANTED)
    assert complete().problems_at(2, WANTED) == [0] and complete().problems_at(0, WANTED) == [0, 1]
    assert complete().lengths(WANTED) == [4, 2]
    for more in (WANTED._replace(num_responses=4), WANTED._replace(positions=(0, 2, 3)),
                 WANTED._replace(num_continuations=3)):  # fmt: skip
        assert not complete().is_complete(more)
    assert complete().missing_of(0, WANTED._replace(num_continuations=3)) == [(0, 2), (2, 2)]
    assert complete().missing_of(1, WANTED._replace(positions=(0, 2, 3))) == []


def test_returns_are_in_the_order_of_problems_and_samples_and_discounted_by_tokens_to_come() -> None:
    assert complete().returns_at(0, WANTED, 1.0).tolist() == [[0.0, 1.0], [0.0, 1.0]]
    assert complete().returns_at(2, WANTED, 0.5).tolist() == [[-2 * 0.25, -1 * 0.25]]
    assert complete().returns_at(4, WANTED, 1.0).shape == (0, 2)


def test_lines_of_all_workers_are_read_and_torn_or_foreign_ones_are_none(tmp_path: Path) -> None:
    one, other, elsewhere = (ContinuationFiles(tmp_path, *of) for of in (("p", 0), ("p", 1), ("q", 0)))
    one.add(response(0))
    other.add(continuation(0, 2, 1))
    elsewhere.add(response(7))
    one.add(LeftOut(problem=2, tokens=9))
    other.add(continuation(0, 2, 1, reward=-5.0))  # twice: the first counts
    path = tmp_path / "p.0.jsonl"
    with path.open("ab") as file:
        for line in ("[" * 100_000, "{}", '{"kind": "response", "problem": -1}', '{"kind": "maybe"}'):
            file.write(line.encode() + b"\n")
        file.write(response(1).model_dump_json().encode()[:-5])
    found = one.read()
    assert found.responses == {0: response(0)} and set(found.left_out) == {2}
    assert found.continuations == {(0, 2, 1): continuation(0, 2, 1)}
    ContinuationFiles(tmp_path, "p", 0).add(response(1))  # the torn line does not spoil it
    assert one.read().responses == {0: response(0), 1: response(1)}


@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_a_reward_that_is_no_number_is_no_line(tmp_path: Path, reward: float) -> None:
    line = {**continuation(0, 0, 0).model_dump(), "reward": reward}
    (tmp_path / "p.0.jsonl").write_text(json.dumps(line) + "\n")
    assert ContinuationFiles(tmp_path, "p").read().continuations == {}


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": {"temperature": 0.7}},
        {"sampling": {"max_response_tokens": 17}},
        {"task": {"reward_wrong": 0.0}},
        {"run": {"seed": 5}},
        {"task": {"options": {"num_operations": 3}}},
    ],
)
def test_whatever_they_depend_on_makes_other_records(tmp_path: Path, changed: dict[str, dict[str, object]]) -> None:
    def of(**sections: dict[str, object]) -> VcppoConfig:
        tree = {"run": {"folder": tmp_path}, "model": {"path": "m"}}
        return VcppoConfig.model_validate({**tree, **{k: {**tree.get(k, {}), **v} for k, v in sections.items()}})

    assert continuation_inputs(of(), "w") == continuation_inputs(of(eval={"temperature": 0.1}), "w")
    assert continuation_inputs(of(**changed), "w") != continuation_inputs(of(), "w")
    assert continuation_inputs(of(), "other") != continuation_inputs(of(), "w")
    assert json.loads(json.dumps(continuation_inputs(of(), "w"))) == continuation_inputs(of(), "w")

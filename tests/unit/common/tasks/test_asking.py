"""What a user's task answers is looked at; what is wrong with it is told once, by task, number and place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from vcppo.common.errors import EXIT_USAGE
from vcppo.common.tasks import Demonstration, Problem, Task, TaskError, Verdict
from vcppo.common.tasks.asking import demonstrations_of, problems_of

GOOD = Problem("1 + 1 =", {"answer": "2"})


class Scripted(Task):
    def __init__(self, answer: Callable[[int], Any]) -> None:
        self.answer = answer

    def problems(self, split: str, seed: int, start: int, count: int) -> Any:
        return self.answer(count)

    def demonstrations(self, seed: int, count: int, style: Mapping[str, object]) -> Any:
        return self.answer(count)

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: str) -> Verdict:
        return Verdict("wrong", None)


def raises(error: Exception) -> Callable[[int], Any]:
    def answer(count: int) -> Any:
        raise error

    return answer


NO_PROBLEMS: list[tuple[Callable[[int], Any], str]] = [
    (raises(KeyError("question")), "raised KeyError: 'question' at "),
    (raises(RecursionError("deep")), "raised RecursionError: deep"),
    (lambda count: [GOOD] * (count - 1), "gave 2 problems instead of 3: the sequence has no end"),
    (lambda count: [GOOD] * (count + 1), "gave 4 problems instead of 3"),
    (lambda count: [], "gave 0 problems instead of 3"),
    (lambda count: None, "gave a NoneType instead of a list"),
    (lambda count: (GOOD for _ in range(count)), "gave a generator instead of a list"),
    (lambda count: "abc", "gave a str instead of a list"),
    (lambda count: [GOOD, ("a", {}), GOOD], "problem 8 (problem 8 of the train split (seed 5)) is a tuple, no Problem"),
    (
        lambda count: [GOOD, GOOD, Problem("", {})],
        "problem 9 (problem 9 of the train split (seed 5)) has an empty prompt",
    ),
    (lambda count: [Problem(b"x", {})] * count, "has a prompt that is a bytes, not text or chat messages"),  # type: ignore[arg-type]
    (lambda count: [Problem([], {})] * count, "has a prompt that is a list, not text or chat messages"),
    (lambda count: [Problem([{"role": "user"}], {})] * count, "has a chat message without a role and a content"),
    (lambda count: [Problem("x", "2")] * count, "has an answer that is a str, not a dict"),  # type: ignore[arg-type]
    (lambda count: [Problem("x", {"a": {1, 2}})] * count, "can't be sent to a verifier as JSON"),
]


@pytest.mark.parametrize(("answer", "text"), NO_PROBLEMS)
def test_what_are_no_problems_is_told_by_task_number_and_remedy(answer: Callable[[int], Any], text: str) -> None:
    with pytest.raises(TaskError) as refused:
        problems_of(Scripted(answer), "train", seed=5, start=7, count=3)
    told = str(refused.value)
    assert told.startswith(f"{__name__}:Scripted.problems('train', seed=5, start=7, count=3)")
    assert text in told
    assert told.endswith("correct the task, then start again: the run goes on where it is")
    assert "\n" not in told
    assert refused.value.exit_code == EXIT_USAGE  # the supervisor starts nobody again


def test_a_fault_of_our_own_raising_keeps_its_text() -> None:
    with pytest.raises(TaskError, match=r"^train.jsonl:3: no question$"):
        problems_of(Scripted(raises(TaskError("train.jsonl:3: no question"))), "train", 0, 0, 1)


def test_problems_come_through_unchanged() -> None:
    chat = Problem([{"role": "user", "content": "Hi", "name": "x"}], {"answer": [1, {"b": None}]})
    assert problems_of(Scripted(lambda count: (GOOD, chat)), "held_out", 0, 0, 2) == [GOOD, chat]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (raises(ValueError("no")), "raised ValueError: no"),
        (lambda count: [], "gave 0 demonstrations instead of 2"),
        (lambda count: [GOOD] * count, "demonstration 0 is a Problem, no Demonstration"),
        (lambda count: [Demonstration("x", 3)] * count, "demonstration 0 has a response that is a int, not text"),  # type: ignore[arg-type]
        (lambda count: [Demonstration("", "y")] * count, "demonstration 0 has an empty prompt"),
    ],
)
def test_what_are_no_demonstrations_is_told(answer: Callable[[int], Any], text: str) -> None:
    with pytest.raises(TaskError) as refused:
        demonstrations_of(Scripted(answer), 1, 2, {"long": True})
    assert f"{__name__}:Scripted.demonstrations(seed=1, count=2, style={{'long': True}})" in str(refused.value)
    assert text in str(refused.value)

"""The task reasoning_gym: pure by number, splits apart, the library's scorers, and what is refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.rig.check_model import make
from vcppo.common.config import TaskConfig, load_config
from vcppo.common.tasks import TaskError, Verdict, load_task
from vcppo.common.tasks.asking import problems_of
from vcppo.common.tasks.interface import Problem, Split
from vcppo.common.tasks.reasoning_gym.gym_source import GymSource, is_in
from vcppo.common.tasks.reasoning_gym.gym_task import ReasoningGymTask, answer_in
from vcppo.generator.check.__main__ import CHECKS
from vcppo.generator.check.data_context import Context

TWO = ("leg_counting", {"name": "chain_sum", "weight": 2, "config": {"min_digits": 3}})
SLOW = {"futoshiki", "knight_swap", "puzzle24", "sokoban", "zebra_puzzles"}  # to make one takes up to a second

BY_HASH = {"intermediate_integration", "isomorphic_strings", "polynomial_multiplication", "ransom_note", "word_ladder"}


@pytest.fixture
def library() -> Any:
    return pytest.importorskip("reasoning_gym", reason="the optional extra vcppo[reasoning-gym] is not installed")


def task_of(*datasets: Any, **options: Any) -> ReasoningGymTask:
    return ReasoningGymTask(datasets=list(datasets), **options)


def text_of(problem: Problem) -> str:
    return str(problem.prompt[-1]["content"])  # type: ignore[index]


def test_without_the_library_it_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"optional extra \(.*\): pip install vcppo\[reasoning-gym\]$"):
        load_task(TaskConfig(name="reasoning_gym", options={"datasets": ["leg_counting"]}))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<answer> 5\n</answer>", "5"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>4</answer> no, <answer>5", "4"),
        ("<answer></answer>", ""),
        ("5", None),
        ("5</answer>", None),
        ("</answer><answer>5", None),
    ],
)
def test_the_last_closed_answer_counts(text: str, answer: str | None) -> None:
    assert answer_in(text) == answer


class TestProblems:
    def test_number_i_is_a_function_of_split_seed_and_i(self, library: Any) -> None:
        first, again = task_of(*TWO), task_of(*TWO)
        whole = problems_of(first, "train", 7, 0, 150)
        for start in (149, 3, 64, 0):
            assert problems_of(again, "train", 7, start, 1) == [whole[start]]
        assert problems_of(again, "train", 8, 0, 150) != whole
        assert len({text_of(each) for each in whole}) == 150
        far = 1 << 40  # where substitutes are
        assert problems_of(first, "train", 7, far, 2) == problems_of(again, "train", 7, far, 2)

    def test_splits_never_meet(self, library: Any) -> None:
        """By seeds, which lie apart, and by text, also where a small space repeats."""
        tiny = task_of({"name": "coin_flip", "config": {"min_trials": 3, "max_trials": 4}}, *TWO)
        texts: dict[Split, set[str]] = {}
        splits: tuple[Split, ...] = ("train", "held_out")
        for split in splits:
            problems = [each for seed in (0, 1) for each in problems_of(tiny, split, seed, 0, 120)]
            texts[split] = {text_of(each) for each in problems}
            assert {int(str(each.answer["seed"])) >> 31 for each in problems} == {int(split == "held_out")}
        assert texts["train"] and texts["held_out"] and not texts["train"] & texts["held_out"]

    def test_no_entry_is_used_twice(self, library: Any) -> None:
        source = GymSource("chain_sum", {}, allow_eval=False)
        drawn = [source.draw("train", 3, number) for number in (*range(300), 10**6, 10**6 + 64, 33_000_000)]
        assert len({each.seed + each.place for each in drawn}) == len(drawn)
        assert max(each.seed for each in drawn) + 4096 <= 2**31

    def test_shares_are_the_weights(self, library: Any) -> None:
        answers = [each.answer["dataset"] for each in problems_of(task_of(*TWO), "train", 0, 0, 120)]
        assert (answers.count(0), answers.count(1)) == (40, 80)

    def test_prompts_by_the_options(self, library: Any) -> None:
        (problem,) = problems_of(task_of("leg_counting", system_prompt="Hi."), "train", 0, 0, 1)
        assert problem.prompt[0] == {"role": "system", "content": "Hi."}
        assert text_of(problem).endswith("between <answer> and </answer>.")
        (plain,) = problems_of(task_of("leg_counting", prompt_template="{question} A:"), "train", 0, 0, 1)
        assert isinstance(plain.prompt, str) and plain.prompt.endswith("? A:")
        with pytest.raises(TaskError, match="chat_template_kwargs is for"):
            task_of("leg_counting", prompt_template="{question}", chat_template_kwargs={"a": 1})

    def test_places_questions_and_repeats(self, library: Any) -> None:
        task = task_of("coin_flip", "leg_counting")
        assert task.where("train", 0, 0).split(" (seed ")[0] in ("coin_flip", "leg_counting")
        assert len(task.questions("held_out", 3)) == 6
        assert all(is_in("held_out", each) for each in task.questions("held_out", 3))
        tiny = task_of({"name": "coin_flip", "config": {"min_trials": 3, "max_trials": 4}})
        (finding,) = tiny.findings()
        assert finding.level == "warning" and "held-out problems are asked twice" in finding.text
        assert list(task_of("leg_counting").findings()) == []


class TestVerdicts:
    def test_by_the_librarys_own_score(self, library: Any) -> None:
        (problem,) = problems_of(task_of("leg_counting"), "train", 0, 0, 1)
        right = str(problem.answer["answer"])
        answer = json.loads(json.dumps(problem.answer))  # as it travels
        task = task_of("leg_counting")
        assert task.verify(answer, f"hm</think><answer>{right}</answer>", "stop") == Verdict("correct", right)
        assert task.verify(answer, "<answer>-1</answer>", "stop") == Verdict("wrong", "-1")
        assert task.verify(answer, right, "stop") == Verdict("unparsable", None)
        assert task.verify(answer, f"<answer>{right}</answer>", "length") == Verdict("unparsable", None)

    def test_a_graded_score_and_where_correct_begins(self, library: Any) -> None:
        (problem,) = problems_of(task_of("chain_sum"), "train", 0, 0, 1)
        near = f"{problem.answer['answer']} or so"
        score = task_of("chain_sum").score(problem.answer, near)
        assert 0 < score < 1
        for correct_from, outcome in ((1.0, "wrong"), (score, "correct")):
            task = task_of("chain_sum", correct_from=correct_from)
            assert task.verify(problem.answer, f"<answer>{near}</answer>", "stop").outcome == outcome

    def test_a_scorer_that_raises_gives_nothing_and_one_without_a_number_is_named(
        self, library: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = task_of("boxnet")
        (problem,) = problems_of(task, "train", 0, 0, 1)
        assert task.score(problem.answer, "-1") == 0.0  # it raises TypeError
        kind = library.factory.DATASETS["boxnet"][0]
        monkeypatch.setattr(kind, "score_answer", lambda *_: float("nan"))
        with pytest.raises(TaskError, match="the scorer of boxnet gave nan"):
            task.score(problem.answer, "-1")

    def test_another_version_of_the_library_is_noticed(self, library: Any) -> None:
        task = task_of("leg_counting")
        (problem,) = problems_of(task, "train", 0, 0, 1)
        with pytest.raises(TaskError, match="is another question here: install one version"):
            task.score({**problem.answer, "index": 4000}, "1")

    def test_every_data_set_is_pure_and_takes_its_own_answer(self, library: Any) -> None:
        """All of the library's, from two objects, in another order, through JSON."""
        for name in sorted(library.factory.DATASETS.keys() - {"composite", "codeio"} - SLOW - BY_HASH):
            first, again = (task_of(name, allow_eval=True) for _ in range(2))
            problems = problems_of(first, "held_out", 1, 0, 2)
            assert problems_of(again, "held_out", 1, 1, 1) == problems[1:], name
            answer = json.loads(json.dumps(problems[0].answer))
            if "answer" in answer:
                assert again.score(answer, answer["answer"]) == 1.0, name
            assert 0 <= again.score(answer, "no answer") <= 1, name

    def test_check_finds_nothing(self, library: Any, tmp_path: Path) -> None:
        make(tmp_path)
        config = load_config(
            tmp_path / "run.yaml", ["task={name: reasoning_gym, options: {datasets: [leg_counting]}}",
                                    "generator.max_model_len=1024", "learner.micro_batch_tokens=1024"],
        )  # fmt: skip
        context = Context(config)
        lines = [line for check in CHECKS if check.name != "vLLM" for line in check.lines(context)]
        assert {line.status for line in lines} == {"passed"}, lines
        assert any("right answers: 20 of 20" in line.text for line in lines)


class TestRefused:
    @pytest.mark.parametrize(
        ("dataset", "says"),
        [
            ("no_such_thing", "has no data set 'no_such_thing'; it has ab, acre"),
            ("composite", "composite can't be used: list its parts"),
            ("codeio", "codeio can't be used: it runs programs"),
            ("word_ladder", r"word_ladder makes other problems in each process.*PYTHONHASHSEED=0"),
            ({"name": "leg_counting", "config": {"seed": 1}}, "leg_counting: seed is vcppo's to set"),
            ({"name": "leg_counting", "config": {"legs": 1}}, "no config field 'legs'; it has max_animals"),
            ({"name": "leg_counting", "config": {"min_animals": 0}}, "leg_counting refuses its config"),
            ({"name": "leg_counting", "weight": 0}, "weight"),
            ({"title": "leg_counting"}, "datasets"),
            ("countdown", r"scorer of countdown runs what the policy answers.*allow_eval=true"),
        ],
    )
    def test_by_name(self, library: Any, dataset: Any, says: str) -> None:
        with pytest.raises(TaskError, match=says):
            task_of(dataset)

    def test_without_randomised_hashes_all_are_taken(self, library: Any) -> None:
        code = (
            "from vcppo.common.tasks.reasoning_gym.gym_source import GymSource\n"
            "entry = GymSource('word_ladder', {}, allow_eval=False).draw('train', 0, 5).entry\n"
            "print(entry['question'])"
        )
        outs = [
            subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": "0"}, check=True,
                           capture_output=True, text=True).stdout
            for _ in range(2)
        ]  # fmt: skip
        assert outs[0] == outs[1] != ""

    def test_the_same_twice_and_weights_too_small(self, library: Any) -> None:
        with pytest.raises(TaskError, match="leg_counting is there twice"):
            task_of("leg_counting", {"name": "leg_counting", "weight": 3})
        with pytest.raises(TaskError, match=r"chain_sum has weight 0\.001"):
            task_of("leg_counting", {"name": "chain_sum", "weight": 0.001})

    def test_whose_scorers_run_answers(self, library: Any) -> None:
        """A new version of the library may have another list: look at it."""
        refused = []
        for name in sorted(library.factory.DATASETS.keys() - {"composite", "codeio"} - BY_HASH):
            try:
                task_of(name)
            except TaskError:
                refused.append(name)
        assert refused == [
            "binary_matrix", "countdown", "n_queens", "puzzle24", "simple_integration", "spiral_matrix",
            "string_insertion",
        ]  # fmt: skip
        assert task_of("countdown", allow_eval=True)

    def test_a_space_without_a_held_out_problem(self, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        kind = library.factory.DATASETS["leg_counting"][0]
        monkeypatch.setattr(kind, "__getitem__", lambda *_: {"question": "?", "answer": "1", "metadata": {}})
        split: Split = "train" if is_in("held_out", "?") else "held_out"
        with pytest.raises(TaskError, match=f"leg_counting has no {split} problem among 64"):
            problems_of(task_of("leg_counting"), split, 0, 0, 1)

    def test_an_entry_that_can_not_be_made(self, library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        task = task_of("leg_counting")
        monkeypatch.setattr(library.factory.DATASETS["leg_counting"][0], "__getitem__", lambda *_: 1 / 0)
        with pytest.raises(
            TaskError, match=r"leg_counting can't make an entry \(seed \d+, index 0\): ZeroDivisionError"
        ):
            problems_of(task, "train", 0, 0, 1)

"""Benchmarks as tasks, mixes, overlap: what is asked, what counts as the answer, and bad rows in one line."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.paths import DATA
from vcppo.common.config import TaskConfig, VcppoConfig
from vcppo.common.tasks import Problem, Task, TaskError, Verdict, load_task
from vcppo.common.tasks.choices import chosen_letter
from vcppo.common.tasks.mix import PERIOD, MixTask, parts_of
from vcppo.common.text.shared_ngrams import find_overlaps
from vcppo.deploy.cli import main
from vcppo.deploy.evaluation.known_benchmarks import BENCHMARKS, as_overrides

CONFIG = "run: {name: r}\nmodel: {path: m}\n"


def benchmark(name: str, **options: object) -> Task:
    path = options.pop("path", DATA / f"{name}.jsonl")
    chosen = {k: v for k, v in BENCHMARKS[name].options.items() if k not in ("subset", "hub_split")}
    settings = {"path": str(path), "evaluation_only": True, **chosen, **options}
    return load_task(TaskConfig(name=BENCHMARKS[name].task, options=settings))


def all_of(task: Task) -> list[Problem]:
    return task.problems("held_out", 0, 0, task.num_problems("held_out") or 0)


def text(problem: Problem) -> str:
    return problem.prompt if isinstance(problem.prompt, str) else problem.prompt[-1]["content"]


class TestAime:
    def test_integers_by_math_verify_after_the_thinking(self) -> None:
        task = benchmark("aime")
        by_answer = {str(problem.answer["reference"]): problem for problem in all_of(task)}
        assert set(by_answer) == {"66", "73", "1", "15"}
        judged = [
            ("<think>It is 12.</think>The answer is \\boxed{73}.", "correct"),
            ("<think>x</think>\\boxed{073}", "correct"),
            ("<think>x</think>$\\frac{146}{2}$", "correct"),
            ("<think>\\boxed{73}</think>I give up", "unparsable"),
            ("<think>\\boxed{73}</think>\\boxed{72}", "wrong"),
        ]
        for response, outcome in judged:
            assert task.verify(by_answer["73"].answer, response, "stop").outcome == outcome, response
        assert task.verify(by_answer["73"].answer, "\\boxed{73}", "length").outcome == "unparsable"

    @pytest.mark.parametrize("answer", ["1000", "-1", "1/2", "x", "7.5", "٣"])
    def test_another_answer_is_refused_with_its_place(self, tmp_path: Path, answer: str) -> None:
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps({"problem": "q", "answer": answer}))
        with pytest.raises(TaskError, match=r"a\.jsonl:1: 'answer' = .* is no integer from 0 to 999"):
            benchmark("aime", path=file)


class TestGpqa:
    def test_the_order_of_options_is_drawn_by_the_seed_and_the_right_one_is_known(self) -> None:
        orders = set()
        for seed in range(30):
            task = benchmark("gpqa", order_seed=seed)
            assert [p.prompt for p in all_of(task)] == [p.prompt for p in all_of(benchmark("gpqa", order_seed=seed))]
            for problem in all_of(task):
                if "rest energy" not in text(problem):
                    continue
                letter = str(problem.answer["letter"])
                assert f"{letter}) 4 MeV" in text(problem)
                assert (
                    task.verify(problem.answer, f"<think>A B C D</think>\\boxed{{{letter}}}", "stop").outcome
                    == "correct"
                )
                orders.add(letter)
        assert orders == set("ABCD")

    def test_outcomes(self) -> None:
        task = benchmark("gpqa")
        (problem, *_) = all_of(task)
        wrong = next(letter for letter in "ABCD" if letter != problem.answer["letter"])
        assert task.verify(problem.answer, f"Answer: {wrong}", "stop") == Verdict("wrong", wrong)
        assert task.verify(problem.answer, "I don't know", "stop") == Verdict("unparsable", None)

    def test_options_that_are_alike_are_refused(self, tmp_path: Path) -> None:
        row = json.loads((DATA / "gpqa.jsonl").read_text().splitlines()[0])
        file = tmp_path / "a.jsonl"
        file.write_text(json.dumps({**row, "Incorrect Answer 2": " 4 MeV"}))
        with pytest.raises(TaskError, match=r"a\.jsonl:1: two options are alike"):
            benchmark("gpqa", path=file)


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("\\boxed{B}", "B"), ("\\boxed{\\text{C}}", "C"), ("so \\boxed{(d)}.", "D"), ("The answer is (A).", "A"),
        ("(B)\n", "B"),
        ("**Answer: C**", "C"), ("Final answer: **D**", "D"), ("the correct answer is B", "B"), ("B", "B"),
        ("A) 4 MeV\nB) 2 MeV\nThe answer is B) 2 MeV", "B"), ("answer is A. No, the answer is C", "C"),
        ("A particle answers to a field", None), ("The answer is a photon", None), ("\\boxed{E}", None), ("", None),
        ("Answer: A\n\\boxed{B}", "B"), ("The answer isn't clear", None),
    ],
)  # fmt: skip
def test_the_letter_a_response_ends_up_with(said: str, letter: str | None) -> None:
    assert chosen_letter(said, 4) == letter


class TestCodeforces:
    def test_columns_make_up_the_question_and_programs_are_run(self) -> None:
        task = benchmark("codeforces")
        (digits,) = [problem for problem in all_of(task) if "decimal digits" in text(problem)]
        assert "One line with an integer n" in text(digits) and "One integer." in text(digits)
        right = "<think>```python\nprint(0)\n```</think>```python\nprint(sum(map(int, input())))\n```"
        assert task.verify(digits.answer, right, "stop") == Verdict("correct", "2 tests")
        assert task.verify(digits.answer, "```python\nprint(6)\n```", "stop").outcome == "wrong"

    def test_a_column_that_is_not_there_is_named(self) -> None:
        with pytest.raises(TaskError, match=r"no field 'statement'.*question_columns"):
            benchmark("codeforces", question_columns=["statement"])


class TestEvaluationOnly:
    def test_there_is_nothing_to_train_on(self) -> None:
        task = benchmark("aime")
        with pytest.raises(TaskError, match="for evaluation only"):
            task.problems("train", 0, 0, 1)

    def test_an_empty_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").write_text("\n")
        with pytest.raises(TaskError, match="holds no problem"):
            benchmark("aime", path=tmp_path / "a.jsonl")


class Letters(Task):
    """Endless: the first letter of a word of its own."""

    def __init__(self, letter: str = "a") -> None:
        self.letter = letter

    def problems(self, split, seed, start, count):  # type: ignore[no-untyped-def]
        return [
            Problem(f"{self.letter} {split} {seed} {i}", {"right": self.letter}) for i in range(start, start + count)
        ]

    def verify(self, answer, response, finish_reason):  # type: ignore[no-untyped-def]
        return Verdict("correct" if response == answer["right"] == self.letter else "wrong", response)


def mix(*weights: float) -> MixTask:
    name = f"{__name__}:Letters"
    sources = [{"name": name, "weight": w, "options": {"letter": "abcdef"[i]}} for i, w in enumerate(weights)]
    return MixTask(sources=sources)


class TestMix:
    def test_shares_are_the_weights_and_no_problem_is_skipped_or_repeated(self) -> None:
        task = mix(3, 2, 1)
        drawn = task.problems("train", 7, 0, 3 * PERIOD)
        prompts = [str(problem.prompt) for problem in drawn]
        assert Counter(prompt[0] for prompt in prompts) == {"a": 180, "b": 120, "c": 60}
        for letter, count in (("a", 180), ("b", 120), ("c", 60)):
            mine = [prompt for prompt in prompts if prompt[0] == letter]
            assert mine == [f"{letter} train 7 {i}" for i in range(count)]
        assert max(Counter(prompt[0] for prompt in prompts[:30]).values()) < 30  # mixed, not one after the other

    def test_random_access_gives_the_same_problems(self) -> None:
        task = mix(2, 1)
        whole = task.problems("train", 1, 0, 400)
        assert [mix(2, 1).problems("train", 1, i, 1)[0] for i in range(400)] == whole
        assert task.problems("train", 1, 123, 200) == whole[123:323]
        assert task.problems("train", 2, 0, 400) != whole

    def test_each_source_judges_its_own(self) -> None:
        task = mix(1, 1)
        for problem in task.problems("held_out", 0, 0, 20):
            letter = str(problem.prompt)[0]
            assert task.verify(problem.answer, letter, "stop").outcome == "correct"
            assert task.verify(problem.answer, "?", "stop").outcome == "wrong"

    @pytest.mark.parametrize(("sizes", "weights"), [((7, 5), (1, 1)), ((7, None), (2, 1)), ((200, 90, 11), (3, 2, 1))])
    def test_until_its_number_of_problems_none_comes_twice(
        self, tmp_path: Path, sizes: tuple[int | None, ...], weights: tuple[int, ...]
    ) -> None:
        """Finite sources were taken for endless: an evaluation asked some problems several times."""
        sources: list[dict[str, Any]] = []
        for number, (size, weight) in enumerate(zip(sizes, weights, strict=True)):
            file = tmp_path / f"{number}.jsonl"
            file.write_text("".join(f'{{"question": "{number} {i}", "answer": "1"}}\n' for i in range(size or 0)))
            of_file = {"name": "dataset", "options": {"path": str(file), "evaluation_only": True}}
            endless = {"name": f"{__name__}:Letters", "options": {"letter": "a"}}
            sources.append({**(endless if size is None else of_file), "weight": weight})
        task = MixTask(sources=sources)
        count = task.num_problems("held_out")
        assert count is not None and count >= min(size for size in sizes if size is not None)
        for seed in range(20):
            prompts = [str(problem.prompt) for problem in task.problems("held_out", seed, 0, count)]
            assert len(set(prompts)) == count
        assert task.size("held_out") is None and len(task.parts()) == len(sizes)

    def test_a_mix_of_endless_sources_has_no_end(self) -> None:
        assert mix(2, 1).num_problems("held_out") is None

    def test_parts(self) -> None:
        assert parts_of([1, 1, 1], 120) == [40, 40, 40]
        assert parts_of([0.7, 0.2, 0.1], 120) == [84, 24, 12]
        assert sum(parts_of([1, 2, 3, 5, 7], 120)) == 120

    def test_bad_sources_are_one_line(self) -> None:
        with pytest.raises(TaskError, match=r"weight 0\.001, less than 1 in 120"):
            mix(1, 0.001)
        with pytest.raises(TaskError, match="sources"):
            MixTask(sources=[])
        with pytest.raises(TaskError, match="mix within a mix"):
            MixTask(sources=[{"name": "mix", "weight": 1}])
        with pytest.raises(TaskError, match="neither built in"):
            MixTask(sources=[{"name": "nothing", "weight": 1}])


class TestOverlap:
    TRAIN = (
        "Find the number of ordered pairs of positive integers whose product is exactly one hundred and forty four.",
    )

    def test_a_shared_run_of_words_is_found_whatever_case_and_punctuation(self) -> None:
        asked = ["Unrelated.", "find THE number of ordered pairs, of positive integers whose product is exactly nine!"]
        (found,) = find_overlaps(self.TRAIN, asked, n=8)
        assert (found.test, found.train) == (1, 0)
        assert found.share == pytest.approx(6 / 7)  # 14 words have 7 runs of 8; the last has "nine"
        assert found.run in "find the number of ordered pairs of positive integers whose product is exactly"

    def test_one_word_fewer_than_n_is_none(self) -> None:
        asked = ["find the number of ordered pairs of positive integers whose sum is seven"]
        assert find_overlaps(self.TRAIN, asked, n=11) == []
        assert len(find_overlaps(self.TRAIN, asked, n=10)) == 1

    def test_a_short_question_counts_when_all_of_it_occurs(self) -> None:
        assert [o.test for o in find_overlaps(["What is 2 + 3? Say it."], ["what is 2+3", "what is 2+4"])] == [0]

    def test_a_form_which_most_test_questions_share_is_not_contamination(self) -> None:
        form = "Let m and n be relatively prime positive integers and find the sum m plus n of"
        asked = [f"{form} case {word}" for word in ("one", "two", "three", "four")]
        assert find_overlaps([f"{form} my own"], asked) == []
        assert [o.test for o in find_overlaps([f"{form} case three"], asked)] == [2]

    def test_the_most_contaminated_is_first_with_its_nearest_source(self) -> None:
        words = [f"w{i}" for i in range(30)]
        train = [" ".join(words[:15]), " ".join(words)]
        found = find_overlaps(train, [" ".join([*words[:14], "x"]), " ".join(words)])
        assert [(o.test, o.train, o.share) for o in found] == [(1, 1, 1.0), (0, 0, pytest.approx(2 / 3))]


class TestCommands:
    def run(self, tmp_path: Path, *arguments: str) -> int:
        file = tmp_path / "c.yaml"
        file.write_text(CONFIG)
        return main([arguments[0], "-c", str(file), *arguments[1:], f"run.folder={tmp_path}"])

    def test_contamination_of_a_training_file_by_the_benchmark(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        stolen = json.loads((DATA / "aime.jsonl").read_text().splitlines()[3])["problem"]
        train = tmp_path / "train.jsonl"
        rows = [{"question": f"Some other question number {i}", "answer": "1"} for i in range(30)]
        train.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"question": stolen, "answer": "15"}]))
        options = [
            f"task.options.path={train}",
            f"task.options.held_out_path={DATA / 'problems.jsonl'}",
            "task.name=dataset",
        ]
        arguments = ("contamination", "--benchmark", "aime", "--data", str(DATA / "aime.jsonl"))
        assert self.run(tmp_path, *arguments, *options) == 1
        assert "1 of 4 test questions share a run of 13 words" in capsys.readouterr().out
        train.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert self.run(tmp_path, *arguments, *options) == 0

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (["--benchmark", "jsonl"], "--benchmark jsonl needs --data"),
            (["--benchmark", "aime", "--data", "none.jsonl"], "no file 'none.jsonl'"),
            (["--benchmark", "aime", "--data", str(DATA / "gpqa.jsonl")], "no field 'problem'"),
            (["--data", "x.jsonl"], "give --benchmark"),
            (["--benchmark", "aime", "--data", str(DATA / "aime.jsonl"), "eval.k=64"], "eval.k = 64"),
        ],
    )
    def test_bad_input_is_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
    ) -> None:
        assert self.run(tmp_path, "eval", "--model", str(tmp_path), *arguments) in (1, 2)
        said = capsys.readouterr().err.strip()
        assert says in said and len(said.splitlines()) == 1

    @pytest.mark.parametrize("name", BENCHMARKS)
    def test_a_benchmark_is_settings_the_users_own_win(self, name: str) -> None:
        from vcppo.common.config import load_config

        path = DATA / f"{name}.jsonl"
        file = DATA.parents[1] / "deploy" / "configs" / "demo.yaml"
        config: VcppoConfig = load_config(file, [*as_overrides(name, str(path)), "eval.samples_per_problem=64"])
        assert (config.eval.k, config.eval.samples_per_problem) == (32, 64)
        assert config.task.options["path"] == str(path)

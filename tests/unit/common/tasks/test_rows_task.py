"""Rows as problems: all bad ones in one error, what is the same question, prompts, findings, places."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.paths import DATA
from vcppo.common.config import TaskConfig
from vcppo.common.files.json_file import JsonError, parse_json
from vcppo.common.tasks import Finding, Problem, Task, TaskError, Verdict, load_task
from vcppo.common.tasks.dataset import DatasetTask
from vcppo.common.tasks.rows import RowsError
from vcppo.common.text.question_text import question_key
from vcppo.common.text.shared_ngrams import find_overlaps


def write(path: Path, *rows: object) -> str:
    """Rows as JSON lines; text goes in as it is."""
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return str(path)


def row(question: object, answer: object = "1") -> dict[str, object]:
    return {"question": question, "answer": answer}


def numbered(count: int) -> list[dict[str, object]]:
    return [row(f"What is {i} + 1?", str(i + 1)) for i in range(count)]


def texts(findings: list[Finding], level: str) -> list[str]:
    return [f"{Path(each.where).name}: {each.text}" for each in findings if each.level == level]


class TestBadRows:
    def test_all_of_them_are_named_in_one_error(self, tmp_path: Path) -> None:
        bad = [
            row("good"),
            '{"question": ',
            row(""),
            row(" \n"),
            {"question": "no answer"},
            row("q5", ""),
            row("q6", None),
            row(["q7"]),
            row("q8", {"a": 1}),
            row("q9", True),
            "[" * 100_000,
            row("q11", float("nan")),
            row("q\0 12"),
            "[1]",
            row("q14", r"\frac{1}{2"),
            row("q15", "48/2 = 24\n#### 72"),
            row("good too"),
        ]
        with pytest.raises(RowsError) as caught:
            DatasetTask(path=write(tmp_path / "a.jsonl", *bad))
        assert [Path(each.place).name for each in caught.value.rows] == [f"a.jsonl:{n}" for n in range(2, 17)]
        said = str(caught.value)
        lines = said.splitlines()
        assert lines[0] == "15 rows can't be used:"
        for number, says in (
            (2, "not JSON"),
            (3, "'question' is empty"),
            (5, "no field 'answer'"),
            (6, "'answer' is empty"),
            (7, "'answer' is NoneType"),
            (8, "'question' is list"),
            (9, "'answer' is dict"),
            (10, "'answer' is bool"),
            (11, "nested too deeply"),
            (12, "'answer' is nan"),
            (13, "NUL"),
            (14, "is list, not an object"),
            (15, "brace without its partner"),
            (16, "answer_after"),
        ):
            assert any(f"a.jsonl:{number}: " in line and says in line for line in lines), (number, says)
        assert any("a.jsonl:3: 'question' is empty" in line and "(so do a.jsonl:4)" in line for line in lines)

    def test_a_thousand_rows_with_one_fault_are_one_line(self, tmp_path: Path) -> None:
        with pytest.raises(RowsError, match=r"a\.jsonl:1: no field 'question'.*and 989 more rows") as caught:
            DatasetTask(path=write(tmp_path / "a.jsonl", *({"problem": str(n), "answer": 1} for n in range(1000))))
        assert len(str(caught.value).splitlines()) == 1 and len(caught.value.rows) == 1000

    def test_both_files_are_read_before_anything_is_refused(self, tmp_path: Path) -> None:
        train, held_out = write(tmp_path / "a.jsonl", row("")), write(tmp_path / "b.jsonl", row("q", ""))
        with pytest.raises(RowsError, match=r"(?s)a\.jsonl:1: .*b\.jsonl:1: "):
            DatasetTask(path=train, held_out_path=held_out)

    def test_json_and_parquet_rows_too(self, tmp_path: Path) -> None:
        (tmp_path / "a.json").write_text(json.dumps([row("q"), 1, row("")]))
        with pytest.raises(RowsError, match=r"(?s)a\.json: row 2: is int.*a\.json: row 3: 'question' is empty"):
            DatasetTask(path=str(tmp_path / "a.json"))

    def test_a_line_without_end_does_not_hide_the_next(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("vcppo.common.tasks.rows._MAX_LINE_BYTES", 100)
        rows = [row("x" * 350), row("fine"), row("")]
        with pytest.raises(RowsError) as caught:
            DatasetTask(path=write(tmp_path / "a.jsonl", *rows))
        assert [Path(each.place).name for each in caught.value.rows] == ["a.jsonl:1", "a.jsonl:3"]

    @pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "{", "", "\0", b"\xff", '{"a": 01}'])
    def test_one_error_for_all_that_is_no_json(self, text: str | bytes) -> None:
        with pytest.raises(JsonError, match="not JSON") as caught:
            parse_json(text)
        assert str(caught.value).isprintable() and len(str(caught.value)) < 500


class TestSameQuestion:
    @pytest.mark.parametrize(
        "other",
        ["What is  2 + 3?", "What is 2 + 3?\n", " What\tis\r\n2 + 3?", "What is 2\u00a0+ 3?", "Ｗhat is ２ + 3?",
         "What is 2\u200b + 3?", "WHAT IS 2 + 3?", "\ufeffWhat is 2 + 3?"],
    )  # fmt: skip
    def test_what_a_reader_does_not_see(self, other: str) -> None:
        assert question_key(other) == question_key("What is 2 + 3?")

    @pytest.mark.parametrize("other", ["What is 2 - 3?", "What is 23?", "What is 2 + 3", "What is 2+3?"])
    def test_what_a_reader_sees(self, other: str) -> None:
        assert question_key(other) != question_key("What is 2 + 3?")

    def test_no_held_out_question_is_trained_on_however_it_is_written(self, tmp_path: Path) -> None:
        rows = []
        for i in range(200):
            text = f"What is {i} + 1?"
            rows += [row(each, i + 1) for each in (text, text + "\n", text.upper(), text.replace(" ", "\u00a0"))]
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *rows), held_out_fraction=0.3)
        train, held_out = ({question_key(q) for q in task.questions(split, 9999)} for split in ("train", "held_out"))
        assert train and held_out and not train & held_out

    def test_a_held_out_file_wins_however_it_is_written(self, tmp_path: Path) -> None:
        held_out = write(tmp_path / "b.jsonl", row("What is  5 + 1?\n", 6))
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(20)), held_out_path=held_out)
        assert task.size("train") == 19
        (said,) = texts(list(task.findings()), "warning")[:1]
        assert said.startswith("a.jsonl:6: is also held out (")

    def test_what_is_held_out_depends_on_no_other_row(self, tmp_path: Path) -> None:
        rows = numbered(100)
        whole, part = (
            set(DatasetTask(path=write(tmp_path / "a.jsonl", *some)).questions("held_out", 999))
            for some in (rows, rows[::-2])
        )
        assert part == whole & {str(each["question"]) for each in rows[::-2]}

    def test_a_question_is_evaluated_once(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", *numbered(3), row("What is 1  + 1?", 2))
        task = DatasetTask(path=path, evaluation_only=True)
        assert (task.size("held_out"), task.size("train")) == (3, 0)
        assert "a.jsonl:4: asks the same question as" in texts(list(task.findings()), "warning")[0]

    def test_rows_repeated_a_hundred_times_fill_no_page(self, tmp_path: Path) -> None:
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(50) * 20))
        found = [
            each for each in texts(list(task.findings()), "warning") if "asks the same" in each or "more rows" in each
        ]
        assert len(found) == 11
        assert found[-1].startswith("a.jsonl: 940 more rows ask again") and "50 questions in all" in found[-1]

    def test_two_numbers_for_one_question_are_refused(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", *numbered(20), row("What is 3 + 1?\n", 5), row("What is 4 + 1?", "5.0"))
        with pytest.raises(
            RowsError, match=r"a\.jsonl:21: asks the same question as .*a\.jsonl:4 with another answer \(5, not 4\)"
        ):
            DatasetTask(path=path)

    def test_two_answers_that_are_no_numbers_are_found(self, tmp_path: Path) -> None:
        rows = [row("Expand.", "x^2+2x+1"), row("Expand. ", "(x+1)^2"), row("Expand.", "x^2"), row("EXPAND.", "x")]
        for options in ({"evaluation_only": True}, {"held_out_path": write(tmp_path / "b.jsonl", *numbered(40))}):
            task = DatasetTask(path=write(tmp_path / "a.jsonl", *rows), **options)
            found = list(task.findings())
            (error,) = texts(found, "error")
            assert error.startswith("a.jsonl:3: asks the same question") and "'x^2', not 'x^2+2x+1'" in error
            # In capitals it may be another question.
            assert any(
                each.startswith("a.jsonl:4: asks the same") and "'x', not" in each for each in texts(found, "warning")
            )

    def test_a_reference_that_is_nothing_is_found(self, tmp_path: Path) -> None:
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(40), row("q", r"\text{}")), evaluation_only=True)
        (error,) = texts(list(task.findings()), "error")
        assert error.startswith("a.jsonl:41: the answer") and "no response would be judged correct" in error

    def test_a_reference_that_is_a_sentence_is_pointed_out(self, tmp_path: Path) -> None:
        sentence = "Because the sum of the angles is one half turn, the third angle must be right."
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(40), row("q", sentence)), evaluation_only=True)
        (warning,) = texts(list(task.findings()), "warning")
        assert warning.startswith("a.jsonl:41: the answer") and "16 words" in warning

    def test_contamination_sees_through_unicode(self) -> None:
        asked = ["Ｗhat is the ｓum of the first ten primes that are odd numbers?"]
        assert (
            len(find_overlaps(["What is the\u00a0sum of the first ten primes that are odd numbers?"], asked, n=8)) == 1
        )


class TestPromptTemplate:
    def make(self, tmp_path: Path, **options: Any) -> DatasetTask:
        return DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(20)), **options)

    def prompt(self, tmp_path: Path, template: str) -> str:
        return str(self.make(tmp_path, prompt_template=template).problems("train", 0, 0, 1)[0].prompt)

    @pytest.mark.parametrize(
        ("template", "names"),
        [
            ("Q: {problem}\nA:", "{problem}"),
            ("Q: {Question}\nA:", "{Question}"),
            ("Q: {question} {x}", "{x}"),
            ("{question} {answer}", "{answer}"),
            ("{ question }", "{ question }"),
            ("{question!r}", "{question!r}"),
            ("{question:>9}", "{question:>9}"),
            ("{0}", "{0}"),
            ("{row.question}", "{row.question}"),
            ("{row[question]}", "{row[question]}"),
        ],
    )
    def test_another_placeholder_is_refused_by_name(self, tmp_path: Path, template: str, names: str) -> None:
        with pytest.raises(TaskError, match=r"task\.options\.prompt_template") as error:
            self.make(tmp_path, prompt_template=template)
        assert f"nothing fills in {names}" in str(error.value) and f"write {{{names}}}" in str(error.value)

    @pytest.mark.parametrize(
        "template", ["Solve this", "", "Q: {{question}}", "Q: {{ question }}", "Q: {}", "{question"]
    )
    def test_without_the_question_it_is_refused(self, tmp_path: Path, template: str) -> None:
        with pytest.raises(TaskError, match=r"has no \{question\}"):
            self.make(tmp_path, prompt_template=template)

    @pytest.mark.parametrize(
        ("template", "tail"),
        [
            ("{question} {{x}}", " {x}"),
            ("{question} {{question}}", " {question}"),
            ("{question} {{}}", " {}"),
            (r"{question} \boxed{}", r" \boxed{}"),
            (r"{question} \boxed{answer}", r" \boxed{answer}"),
            (r"{question} \boxed{{answer}}", r" \boxed{answer}"),
            (r"{question} $\frac{a}{b}$, x^{n}, a_{ij}", r" $\frac{a}{b}$, x^{n}, a_{ij}"),
            ('{question} {"answer": 5}', ' {"answer": 5}'),
            ("{question} {a, b}", " {a, b}"),
        ],
    )
    def test_literal_braces(self, tmp_path: Path, template: str, tail: str) -> None:
        prompt = self.prompt(tmp_path, template)
        assert prompt.startswith("What is ") and prompt.partition("?")[2] == tail

    def test_a_question_is_not_a_template(self, tmp_path: Path) -> None:
        rows = [row(f"{{question}} {{x}} {{{{y}}}} {i}") for i in range(9)]
        task = DatasetTask(path=write(tmp_path / "q.jsonl", *rows), prompt_template="{question}|{question}")
        assert str(task.problems("train", 0, 0, 1)[0].prompt).count("{question} {x} {{y}}") == 2

    @pytest.mark.parametrize("option", ["instruction", "system_prompt"])
    def test_a_placeholder_elsewhere_is_refused(self, tmp_path: Path, option: str) -> None:
        with pytest.raises(TaskError, match=rf"task\.options\.{option} = .*prompt_template only"):
            self.make(tmp_path, **{option: "Solve {question}"})

    def test_what_has_no_effect_is_said(self, tmp_path: Path) -> None:
        task = self.make(tmp_path, prompt_template="{question}", system_prompt="Be brief.", instruction="Think.")
        assert [f.where for f in task.findings() if "has no effect" in f.text] == [
            "task.options.system_prompt",
            "task.options.instruction",
        ]


class TestWhatACheckAsks:
    def test_size_and_where(self, tmp_path: Path) -> None:
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(30)), held_out_fraction=0.3)
        size = task.size("train")
        assert size is not None and size + (task.size("held_out") or 0) == 30
        for number, problem in enumerate(task.problems("train", 5, 0, size)):
            line = int(task.where("train", 5, number).rpartition(":")[2])
            assert f"What is {line - 1} + 1?" in str(problem.prompt)
        assert len({task.where("train", 5, number) for number in range(size)}) == size

    def test_a_users_task_needs_nothing_new(self) -> None:
        class Own(Task):
            def problems(self, split: Any, seed: int, start: int, count: int) -> list[Problem]:
                return [Problem(str(i), {}) for i in range(start, start + count)]

            def verify(self, answer: Any, response: str, finish_reason: Any) -> Verdict:
                return Verdict("wrong", None)

        task = Own()
        assert (task.size("train"), list(task.findings())) == (None, [])
        assert "3" in task.where("train", 0, 3)
        prompt, answer = task.problems("train", 0, 0, 1)[0]  # as it was
        assert (prompt, answer) == ("0", {})

    def test_every_built_in_task_answers(self, tmp_path: Path) -> None:
        for name, file in (("aime", "aime"), ("gpqa", "gpqa"), ("code", "programs"), ("dataset", "problems")):
            options: dict[str, object] = {"path": str(DATA / f"{file}.jsonl"), "evaluation_only": True}
            task = load_task(TaskConfig(name=name, options=options))
            assert task.size("held_out") and f"{file}.jsonl:" in task.where("held_out", 0, 0)
            assert [each for each in task.findings() if each.level == "error"] == []

    def test_few_held_out_problems(self, tmp_path: Path) -> None:
        task = DatasetTask(path=write(tmp_path / "a.jsonl", *numbered(9)), evaluation_only=True)
        assert texts(list(task.findings()), "warning") == [
            "a.jsonl: 9 held-out problems: pass@1 of 50 % has an interval of ± 33 points"
        ]

    def test_a_mix_passes_on_and_looks_across(self, tmp_path: Path) -> None:
        rows = numbered(60)
        sources = [
            {"name": "dataset", "weight": 1, "options": {"path": write(tmp_path / "a.jsonl", *rows)}},
            {
                "name": "dataset",
                "weight": 1,
                "options": {
                    "path": write(tmp_path / "b.jsonl", *numbered(3)),
                    "held_out_path": write(
                        tmp_path / "c.jsonl", row(rows[40]["question"], 41), row(rows[41]["question"], 42)
                    ),
                },
            },
        ]
        task = load_task(TaskConfig(name="mix", options={"sources": sources}))
        errors = [each for each in task.findings() if each.level == "error"]
        assert errors and all(each.where == "task.options.sources[0]" for each in errors)
        assert "sources[1] holds out" in errors[0].text
        assert Path(task.where("train", 0, 0)).name.startswith(("a.jsonl:", "b.jsonl:"))

    def test_twenty_thousand_rows_are_read_in_seconds(self, tmp_path: Path) -> None:
        path = write(tmp_path / "a.jsonl", *numbered(20_000))
        began = time.process_time()
        DatasetTask(path=path)
        assert time.process_time() - began < 30

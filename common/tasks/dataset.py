"""A task from your own data: questions and answers from a file or the Hugging Face hub, judged by math-verify.

``path`` is a ``.jsonl``, ``.json`` (one list) or ``.parquet`` file, or the id of a hub data set (``openai/gsm8k``;
needs ``pip install datasets``). Every row is checked when the task is loaded; one error names all bad rows by file,
line and field. docs/dataset.md is the page about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.interface import Finding, TaskError, Verdict, parse_options
from vcppo.common.tasks.math_answers import judge, quick_problem, reference_problem
from vcppo.common.tasks.maths.symbols import is_prose
from vcppo.common.tasks.maths.values import Unreadable, exact_value
from vcppo.common.tasks.prompts.columns import text_of
from vcppo.common.tasks.rows import Row
from vcppo.common.tasks.rows_task import Question, RowsOptions, RowsTask
from vcppo.common.tasks.user_functions import OwnVerifier
from vcppo.common.text.question_text import visible_text
from vcppo.common.text.yaml_text import one_line

_MANY_WORDS = 12


class ReferenceOptions(RowsOptions):
    """Options of tasks whose rows have a reference answer."""

    answer_column: str = "answer"
    """Column with the reference answer: a number, an expression or LaTeX."""

    answer_after: str | None = None
    """Only what follows this in the answer column is the answer (`####` for GSM8K)."""

    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """Follows the question in the chat form."""


class DatasetOptions(ReferenceOptions):
    """``task.options`` of dataset."""

    verifier: str | None = None
    """module:function of yours that judges in place of math-verify: (answer, response, finish_reason) → Verdict."""

    answer_columns: list[str] | None = None
    """Columns that the verifier gets, as a dict. None: answer_column alone."""


class DatasetTask(RowsTask):
    """See the module's text. Options: `DatasetOptions`."""

    options: ReferenceOptions
    _own: OwnVerifier | None = None

    def __init__(self, **options: object) -> None:
        self.options = given = parse_options(DatasetOptions, options, "task.options")
        _check_verifier(given)
        if given.verifier is not None:
            self._own = OwnVerifier(given.verifier, given.answer_columns or [given.answer_column])
            self.judged_by = [given.verifier]
        super().__init__(given)

    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """``{"reference": text}``; for the user's own verifier, column → value."""
        options = self.options
        if self._own is not None:
            return self._own.answer_of(row)
        answer = text_of(row, options.answer_column, "answer_column")
        if options.answer_after is not None:
            _, marker, answer = answer.rpartition(options.answer_after)
            if not marker:
                raise TaskError(
                    f"{row.place}: {options.answer_column!r} has no {options.answer_after!r}: "
                    "mend the row or task.options.answer_after"
                )
        if not answer.strip():
            raise TaskError(f"{row.place}: {options.answer_column!r} is empty: give the answer or drop the row")
        return {"reference": answer.strip()}

    def answer_problem(self, answer: Mapping[str, object]) -> str | None:
        """What shows at a glance; the rest takes longer: see `answer_findings`."""
        if self._own is not None:
            return None
        reference = str(answer["reference"])
        if (problem := quick_problem(reference)) is None:
            return None
        hint = " ('####' for GSM8K)" if "####" in reference else ""
        remedy = f"mend the row, or set task.options.answer_after to what stands before the answer{hint}"
        return f"{self.options.answer_column!r} {problem}: {remedy}"

    def contradiction(self, first: Mapping[str, object], second: Mapping[str, object]) -> str | None:
        """Two numbers that differ. Whether expressions and words do takes longer: see `answer_findings`."""
        if self._own is not None:
            return None
        numbers = [_number(str(answer["reference"])) for answer in (first, second)]
        if None in numbers or numbers[0] == numbers[1]:
            return None
        return f"{first['reference']}, not {second['reference']}"

    def answer_findings(self, questions: Iterable[Question]) -> Iterator[Finding]:
        """References that nothing would be right against, and questions with two answers."""
        if self._own is not None:
            return
        known: dict[str, str | None] = {}
        first: dict[tuple[str, str], Question] = {}
        for question in questions:
            reference = str(question.answer["reference"])
            shown = one_line(repr(reference), 80)
            if reference not in known:
                known[reference] = reference_problem(reference)
            if (problem := known[reference]) is not None:
                text = f"the answer {shown} {problem}: no response would be judged correct"
                yield Finding(
                    "error", question.place, text, "write the answer as a number, LaTeX or words, or drop the row"
                )
                continue
            if is_prose(reference) and (num_words := len(reference.split())) > _MANY_WORDS:
                text = f"the answer {shown} has {num_words} words: only the same words are judged correct"
                yield Finding("warning", question.place, text, "shorten it to what a response can be expected to say")
            earlier = first.setdefault(question.asked, question)
            if not _agree(str(earlier.answer["reference"]), reference):
                other = one_line(repr(earlier.answer["reference"]), 80)
                text = f"asks the same question as {earlier.place}, but the answer is {shown}, not {other}"
                is_same = visible_text(earlier.text) == visible_text(question.text)
                yield Finding("error" if is_same else "warning", question.place, text, "drop one of the two rows")

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Judged on what follows the thinking, by math-verify (equal values in other forms are correct) or by the
        user's own verifier."""
        final = self.judged_part(response, finish_reason)
        if final is None:
            return Verdict("unparsable", None)
        if self._own is not None:
            return self._own.verify(answer, final, finish_reason)
        return judge(str(answer["reference"]), final)

    def warm_up(self) -> None:
        """math-verify drags in SymPy: seconds, which must not count as the first response's."""
        if self._own is None:
            judge(reference=r"\frac{x+\sqrt{2}}{3}", text=r"$\frac{x}{3}+\frac{\sqrt{2}}{3}$")


def _check_verifier(options: DatasetOptions) -> None:
    """TaskError where two options contradict each other."""
    if options.verifier is None:
        if options.answer_columns is not None:
            raise TaskError(
                "task.options.answer_columns are for a verifier of yours, and math-verify reads one column: set "
                "task.options.verifier to module:function, or name the column by answer_column"
            )
        return
    if options.answer_after is not None:
        raise TaskError(
            "task.options.answer_after is for math-verify, and task.options.verifier takes its place: leave one out"
        )
    if options.answer_columns is not None:
        if "answer_column" in options.model_fields_set:
            raise TaskError("task.options.answer_column and answer_columns exclude each other: leave one out")
        if not options.answer_columns or len(set(options.answer_columns)) < len(options.answer_columns):
            raise TaskError(f"task.options.answer_columns = {options.answer_columns!r}: name each column once")


def _number(reference: str) -> Fraction | None:
    try:
        return exact_value(reference.replace("$", "").replace(",", ""))
    except Unreadable:
        return None


def _agree(first: str, second: str) -> bool:
    return first == second or any(
        judge(a, f"\\boxed{{{b}}}").outcome == "correct" for a, b in ((first, second), (second, first))
    )

"""A task from your own data: questions and answers from a file or the Hugging Face hub, judged by math-verify.

``path`` is a ``.jsonl``, ``.json`` (one list) or ``.parquet`` file, or the id of a hub data set (``openai/gsm8k``;
needs ``pip install datasets``). Every row is checked when the task is loaded; an error names file, line and field.
"""

from __future__ import annotations

from collections.abc import Mapping

from common.tasks.interface import TaskError, Verdict, parse_options
from common.tasks.math_answers import judge
from common.tasks.rows import Row
from common.tasks.rows_task import RowsOptions, RowsTask, text_of
from common.trajectory import FinishReason


class DatasetOptions(RowsOptions):
    """``task.options`` of dataset."""

    answer_column: str = "answer"
    """Column with the reference answer: a number, an expression or LaTeX."""

    answer_after: str | None = None
    """Only what follows this in the answer column is the answer (`####` for GSM8K)."""

    instruction: str = "Please reason step by step, and put your final answer within \\boxed{}."
    """Follows the question in the chat form."""


class DatasetTask(RowsTask):
    """See the module's text. Options: `DatasetOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = parse_options(DatasetOptions, options, "task.options")
        super().__init__(self.options)

    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """``{"reference": text}``."""
        options = self.options
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

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """Judged by math-verify on what follows the thinking; equal values in other forms are correct."""
        final = self.judged_part(response, finish_reason)
        return Verdict("unparsable", None) if final is None else judge(str(answer["reference"]), final)

    def warm_up(self) -> None:
        """math-verify drags in SymPy: seconds, which must not count as the first response's."""
        judge(reference="1/2", text="$0.5$")

"""Benchmarks as tasks: AIME (integers) and GPQA (multiple choice). Codeforces is task `code`.

Columns are those of the public sets (docs/evaluation.md); a JSONL or parquet file with the same columns does as well.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from pydantic import Field

from vcppo.common.records.trajectory import FinishReason
from vcppo.common.tasks.choices import LETTERS, chosen_letter
from vcppo.common.tasks.dataset import DatasetTask, ReferenceOptions
from vcppo.common.tasks.interface import TaskError, Verdict, parse_options
from vcppo.common.tasks.prompts.columns import text_of
from vcppo.common.tasks.rows import Row
from vcppo.common.tasks.rows_task import RowsOptions, RowsTask


class AimeOptions(ReferenceOptions):
    """``task.options`` of aime."""

    question_column: str = "problem"
    """Column with the question."""

    instruction: str = (
        "The answer is an integer from 0 to 999. "
        "Please reason step by step, and put your final answer within \\boxed{}."
    )
    """Follows the question in the chat form."""


class AimeTask(DatasetTask):
    """Integers from 0 to 999, compared by math-verify: 073 is 73. Options: `AimeOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = parse_options(AimeOptions, options, "task.options")
        RowsTask.__init__(self, self.options)

    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """The reference as an integer's text, ``7.0`` read as ``7``.

        Raises TaskError unless it is from 0 to 999, as AIME's are.
        """
        reference = str(super().answer_of(row, question)["reference"])
        number = reference.removesuffix(".0")  # a float column, as parquet makes of integers and nulls
        if not (number.isascii() and number.isdecimal() and int(number) <= 999):
            raise TaskError(
                f"{row.place}: {self.options.answer_column!r} = {reference[:40]!r} is no integer from 0 to 999"
            )
        return {"reference": str(int(number))}


class GpqaOptions(RowsOptions):
    """``task.options`` of gpqa."""

    question_column: str = "Question"
    """Column with the question."""

    correct_column: str = "Correct Answer"
    """Column with the right option."""

    incorrect_columns: list[str] = Field(default=["Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3"])
    """Columns with the wrong options."""

    order_seed: int = 0
    """Draws the order of each question's options; the same for every model and sample."""

    instruction: str = "Please reason step by step, and give the letter of the right option within \\boxed{}."
    """Follows the question in the chat form."""


class GpqaTask(RowsTask):
    """A question and its options in an order drawn by the seed and the question. Options: `GpqaOptions`."""

    def __init__(self, **options: object) -> None:
        self.options = parse_options(GpqaOptions, options, "task.options")
        if self.options.messages_column is not None:
            raise TaskError("task.options.messages_column: a chat has no options with letters: use the task dataset")
        if not 1 <= len(self.options.incorrect_columns) < len(LETTERS):
            raise TaskError(f"task.options.incorrect_columns: from 1 to {len(LETTERS) - 1} of them")
        super().__init__(self.options)

    def question_of(self, row: Row) -> str:
        """The question with its options under letters; `answer_of` draws the same order."""
        choices = self._choices(row)
        listed = "\n".join(f"{letter}) {choice}" for letter, choice in zip(LETTERS, choices, strict=False))
        return f"{super().question_of(row)}\n\n{listed}"

    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """``{"letter": ..., "num_choices": ...}``."""
        choices = self._choices(row)
        right = text_of(row, self.options.correct_column, "correct_column").strip()
        return {"letter": LETTERS[choices.index(right)], "num_choices": len(choices)}

    def verify(self, answer: Mapping[str, object], response: str, finish_reason: FinishReason) -> Verdict:
        """By the letter the response ends up with after its thinking."""
        final = self.judged_part(response, finish_reason)
        letter = None if final is None else chosen_letter(final, int(str(answer["num_choices"])))
        if letter is None:
            return Verdict("unparsable", None)
        return Verdict("correct" if letter == answer["letter"] else "wrong", letter)

    def _choices(self, row: Row) -> list[str]:
        options = self.options
        columns = [
            (options.correct_column, "correct_column"),
            *((c, "incorrect_columns") for c in options.incorrect_columns),
        ]
        choices = [text_of(row, column, option).strip() for column, option in columns]
        if len(set(choices)) < len(choices) or not all(choices):
            raise TaskError(f"{row.place}: two options are alike, or one is empty: no letter would be the right one")
        random.Random(f"{options.order_seed} {super().question_of(row)}").shuffle(choices)
        return choices

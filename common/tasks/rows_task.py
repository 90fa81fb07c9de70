"""What tasks read from rows share: problems from a file or the Hugging Face hub, two splits, prompts, the judged part.

``path`` is a ``.jsonl``, ``.json`` (one list) or ``.parquet`` file, or the id of a hub data set (``openai/gsm8k``;
needs ``pip install datasets``). Every row is checked when the task is loaded; an error names file, line and field.
"""

from __future__ import annotations

import json
import random
from abc import abstractmethod
from functools import lru_cache
from hashlib import blake2b
from typing import Any, NamedTuple

from pydantic import Field

from common.config.yaml_text import one_line
from common.tasks.interface import ChatMessages, Problem, Split, Task, TaskError, TaskOptions
from common.tasks.rows import Row, read_rows
from common.trajectory import FinishReason

_MAX_TEXT = 1 << 18
_MAX_ANSWER_BYTES = 1 << 19


class RowsOptions(TaskOptions):
    """``task.options`` of every task made of rows."""

    path: str
    """A .jsonl, .json or .parquet file, or the id of a Hugging Face data set."""

    held_out_path: str | None = None
    """Held-out problems, likewise. None: a share of `path` is held out, by a hash of the question."""

    subset: str | None = None
    """Configuration name of a hub data set, e.g. `main` of openai/gsm8k."""

    hub_split: str = "train"
    """Which split of a hub data set `path` means."""

    hub_held_out_split: str = "test"
    """Which split of a hub data set `held_out_path` means."""

    evaluation_only: bool = False
    """All rows are held out; there is nothing to train on. For benchmarks."""

    question_column: str = "question"
    """Column with the question."""

    question_columns: list[str] | None = None
    """Several columns that make up the question, joined by blank lines, empty ones left out; instead of one."""

    held_out_fraction: float = Field(default=0.1, gt=0, lt=1)
    """Share of questions held out when held_out_path is not given."""

    prompt_template: str | None = None
    """Plain-text prompt with {question}, for base models. None: chat messages through the model's chat template."""

    system_prompt: str | None = None
    """System message of the chat form."""

    instruction: str = ""
    """Follows the question in the chat form."""

    end_of_thinking: str = "</think>"
    """Only what follows the last of these in a response is judged."""

    require_thinking: bool = False
    """A response without end_of_thinking is `unparsable`; else all of it is judged."""

    judge_truncated: bool = False
    """Judge responses cut off by length too; else they are `unparsable`."""


class _Question(NamedTuple):
    text: str
    answer: dict[str, object]


class RowsTask(Task):
    """A finite set of questions, passed over again and again. Subclasses say what an answer is, and judge."""

    def __init__(self, options: RowsOptions) -> None:
        self._rows_options = options
        self._questions = self._load()
        # A permutation of 100,000 takes long enough not to draw it for every batch; two epochs meet in one batch.
        self._order = lru_cache(maxsize=8)(self._draw_order)

    @abstractmethod
    def answer_of(self, row: Row, question: str) -> dict[str, object]:
        """`Problem.answer` of a row; TaskError names the row's place."""

    def problems(self, split: Split, seed: int, start: int, count: int) -> list[Problem]:
        """See `Task.problems`: passes over the data, each in its own order drawn from the seed and the pass number."""
        questions = self._questions[split]
        if not questions and count:
            raise TaskError(f"task.options.path = {self._rows_options.path!r} is for evaluation only: train on another")
        chosen = []
        for number in range(start, start + count):
            epoch, place = divmod(number, len(questions))
            chosen.append(questions[self._order(split, seed, epoch)[place]])
        return [Problem(self._prompt(question.text), question.answer) for question in chosen]

    def num_problems(self, split: Split) -> int:
        return len(self._questions[split])

    def questions(self, split: Split, count: int) -> list[str]:
        return [question.text for question in self._questions[split][:count]]

    def judged_part(self, response: str, finish_reason: FinishReason) -> str | None:
        """What follows the thinking; None: by the options there is nothing to judge."""
        options = self._rows_options
        if finish_reason != "stop" and not options.judge_truncated:
            return None
        _, marker, final = response.rpartition(options.end_of_thinking)
        return None if options.require_thinking and not marker else final

    def _load(self) -> dict[Split, list[_Question]]:
        options = self._rows_options
        train = [self._question(row) for row in read_rows(options.path, options.subset, options.hub_split)]
        if options.evaluation_only:
            if not train:
                raise TaskError(f"task.options.path = {options.path!r} holds no problem: add rows")
            return {"train": [], "held_out": train}
        if options.held_out_path is not None:
            rows = read_rows(options.held_out_path, options.subset, options.hub_held_out_split)
            held_out = [self._question(row) for row in rows]
            # A question in both files is held out: evaluation must not see what was trained on.
            seen = {question.text for question in held_out}
            train = [question for question in train if question.text not in seen]
        else:
            held_out = [question for question in train if self._is_held_out(question.text)]
            train = [question for question in train if not self._is_held_out(question.text)]
        for split, questions in (("train", train), ("held_out", held_out)):
            if not questions:
                raise TaskError(
                    f"task.options.path = {options.path!r} leaves no problem for the {split} split: add rows, or set "
                    "task.options.held_out_path or held_out_fraction"
                )
        return {"train": train, "held_out": held_out}

    def _question(self, row: Row) -> _Question:
        text = self.question_of(row)
        answer = self.answer_of(row, text)
        size = len(json.dumps(answer))
        if size > _MAX_ANSWER_BYTES:  # it travels with the prompt
            raise TaskError(f"{row.place}: its answer takes {size} bytes, at most {_MAX_ANSWER_BYTES}: drop the row")
        return _Question(text, answer)

    def question_of(self, row: Row) -> str:
        """Text of the question; TaskError names the row's place."""
        options = self._rows_options
        if options.question_columns is None:
            return text_of(row, options.question_column, "question_column")
        columns = [
            name for name in options.question_columns if row.values.get(name) is not None or name not in row.values
        ]
        text = "\n\n".join(filter(None, (text_of(row, name, "question_columns").strip() for name in columns)))
        if not text:
            raise TaskError(f"{row.place}: {', '.join(options.question_columns)} are all empty: drop the row")
        return text

    def _is_held_out(self, question: str) -> bool:
        """By the question's own hash, so the split survives reordering and additions."""
        digest = blake2b(question.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._rows_options.held_out_fraction * 2**64

    def _draw_order(self, split: Split, seed: int, epoch: int) -> list[int]:
        order = list(range(len(self._questions[split])))
        random.Random(f"{split}:{seed}:{epoch}").shuffle(order)
        return order

    def _prompt(self, question: str) -> str | ChatMessages:
        options = self._rows_options
        if options.prompt_template is not None:
            # Not str.format: LaTeX questions and templates are full of braces.
            return options.prompt_template.replace("{question}", question)
        system = [{"role": "system", "content": options.system_prompt}] if options.system_prompt else []
        return [*system, {"role": "user", "content": f"{question}\n\n{options.instruction}".rstrip()}]


def value_of(row: Row, column: str, option: str) -> Any:
    """The row's field; TaskError says which fields there are, and which option names the column."""
    if column not in row.values:
        fields = one_line(", ".join(map(str, row.values)) or "none")
        raise TaskError(f"{row.place}: no field {column!r} (there are: {fields}): set task.options.{option}")
    return row.values[column]


def text_of(row: Row, column: str, option: str) -> str:
    """The row's field as text; a number will do."""
    value = value_of(row, column, option)
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TaskError(f"{row.place}: {column!r} is {type(value).__name__}, not text or a number")
    text = str(value)
    if len(text) > _MAX_TEXT:
        raise TaskError(f"{row.place}: {column!r} has {len(text)} characters, at most {_MAX_TEXT}: drop the row")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TaskError(f"{row.place}: {column!r} has half a character (a lone surrogate): mend the row") from error
    return text
